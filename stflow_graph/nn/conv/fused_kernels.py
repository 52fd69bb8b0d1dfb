"""Triton kernels of the default layer's attention; imported by ``nn.conv.fused`` alone.

One program is one warp: it holds a tile of ``BLOCK_K`` edges of one spot and one head at a time.
Rows are strided, columns contiguous. Widths are padded to powers of two and masked; edges beyond
the last of a spot are masked too. All arithmetic is in float32, whatever the inputs' type.
Offsets are int32: no tensor may hold 2^31 numbers.
"""

import triton
import triton.language as tl


@triton.jit
def _row(pointer, row, stride, column, mask):
    """Load one row as float32, masked columns as 0."""
    return tl.load(pointer + row * stride + column, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _rows(pointer, rows, stride, column, row_mask, column_mask):
    """Load ``[rows, columns]`` as float32, masked ones as 0."""
    mask = row_mask[:, None] & column_mask[None, :]
    place = pointer + rows[:, None] * stride + column[None, :]
    return tl.load(place, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _logits(hidden, sigmoid, a, log_weight, e, there, HAS_WEIGHT: tl.constexpr):
    """Return the scores of a tile's edges, weights included; -inf beyond the last."""
    logit = tl.sum(hidden * sigmoid * a[None, :], axis=1)
    if HAS_WEIGHT:
        logit += tl.load(log_weight + e, mask=there, other=0.0).to(tl.float32)
    return tl.where(there, logit, float("-inf"))


@triton.jit
def _through_score(d_logit, a, hidden, sigmoid):
    """Return the gradient of the hidden layer, ``[K, D]``, from that of the logits."""
    return d_logit[:, None] * a[None, :] * sigmoid * (1.0 + hidden * (1.0 - sigmoid))


@triton.jit(do_not_specialize=["n_spots", "n_each"])
def forward(
    receiver,  # [N, C], q_i - W_y y_i
    sender,  # [N, C], k_j + W_y y_j
    value,  # [N, C]
    edge,  # [E, D_e], f
    log_weight,  # [E]
    to_hidden,  # [C, D_e], W_f
    att,  # [C]
    starts,  # [N + 1]
    senders,  # [E]
    context,  # [N, C + D_e], output
    log_sum,  # [N, H], output: the logarithm of the softmax's denominator
    stride_receiver,
    stride_sender,
    stride_value,
    n_spots,
    n_each,  # spots of a program
    H: tl.constexpr,
    D: tl.constexpr,  # C / H
    D_E: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sum the messages to some spots, for one head, with an online softmax."""
    program = tl.program_id(0)
    part, h = program // H, program % H
    d, column = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_E)
    in_d, in_e = d < D, column < D_E
    channel = h * D + d
    own = in_e & (column // (D_E // H) == h)
    a = _row(att, 0, 0, channel, in_d)
    w = tl.trans(_rows(to_hidden, channel, D_E, column, in_d, in_e))  # [BLOCK_E, BLOCK_D]
    for i in range(part * n_each, tl.minimum((part + 1) * n_each, n_spots)):
        q = _row(receiver, i, stride_receiver, channel, in_d)
        first, last = tl.load(starts + i), tl.load(starts + i + 1)
        largest = tl.full([], float("-inf"), tl.float32)
        total = tl.full([], 0.0, tl.float32)
        sum_v = tl.zeros([BLOCK_D], tl.float32)
        sum_f = tl.zeros([BLOCK_E], tl.float32)
        for start in range(first, last, BLOCK_K):
            e = start + tl.arange(0, BLOCK_K)
            there = e < last
            j = tl.load(senders + e, mask=there, other=0)
            k = _rows(sender, j, stride_sender, channel, there, in_d)
            v = _rows(value, j, stride_value, channel, there, in_d)
            f = _rows(edge, e, D_E, column, there, in_e)
            hidden = tl.dot(f, w, input_precision=PRECISION) + k + q[None, :]
            logit = _logits(hidden, tl.sigmoid(hidden), a, log_weight, e, there, HAS_WEIGHT)
            new_largest = tl.maximum(largest, tl.max(logit, axis=0))
            p = tl.exp(logit - new_largest)
            shrink = tl.exp(largest - new_largest)
            total = total * shrink + tl.sum(p, axis=0)
            sum_v = sum_v * shrink + tl.sum(p[:, None] * v, axis=0)
            sum_f = sum_f * shrink + tl.sum(p[:, None] * f, axis=0)
            largest = new_largest
        some = last > first
        total = tl.where(some, total, 1.0)
        out = context + i * (H * D + D_E)
        tl.store(out + channel, (sum_v / total).to(context.dtype.element_ty), mask=in_d)
        tl.store(out + H * D + column, (sum_f / total).to(context.dtype.element_ty), mask=own)
        tl.store(log_sum + i * H + h, tl.where(some, largest + tl.log(total), 0.0))


@triton.jit
def backward_by_receiver(
    receiver,
    sender,
    value,
    edge,
    log_weight,
    to_hidden,
    att,
    starts,
    senders,
    context,
    log_sum,
    grad,  # [N, C + D_e], of the context
    d_receiver,  # [N, C], output
    d_edge,  # [E, D_e], output
    alpha,  # [E, H], output: the attention
    d_logit,  # [E, H], output
    stride_receiver,
    stride_sender,
    stride_value,
    H: tl.constexpr,
    D: tl.constexpr,
    D_E: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_H: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute the gradients of one spot's own term and of its edges."""
    i = tl.program_id(0)
    d, column, heads = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_H)
    in_d, in_e = d < D, column < D_E
    first, last = tl.load(starts + i), tl.load(starts + i + 1)
    width = H * D + D_E
    grad_f = _row(grad, i, width, H * D + column, in_e)
    grad_f_f = grad_f * _row(context, i, width, H * D + column, in_e)
    d_q = tl.zeros([BLOCK_H, BLOCK_D], tl.float32)
    for start in range(first, last, BLOCK_K):
        e = start + tl.arange(0, BLOCK_K)
        there = e < last
        j = tl.load(senders + e, mask=there, other=0)
        f = _rows(edge, e, D_E, column, there, in_e)
        d_f = tl.zeros([BLOCK_K, BLOCK_E], tl.float32)
        for h in range(H):
            channel = h * D + d
            own = column // (D_E // H) == h
            q = _row(receiver, i, stride_receiver, channel, in_d)
            a = _row(att, 0, 0, channel, in_d)
            w = _rows(to_hidden, channel, D_E, column, in_d, in_e)  # [BLOCK_D, BLOCK_E]
            grad_v = _row(grad, i, width, channel, in_d)
            own_grad_f = tl.where(own, grad_f, 0.0)
            # sum_j α_ij dα_ij, which is the gradient times the context
            mean = tl.sum(grad_v * _row(context, i, width, channel, in_d), axis=0)
            mean += tl.sum(tl.where(own, grad_f_f, 0.0), axis=0)
            k = _rows(sender, j, stride_sender, channel, there, in_d)
            v = _rows(value, j, stride_value, channel, there, in_d)
            hidden = tl.dot(f, tl.trans(w), input_precision=PRECISION) + k + q[None, :]
            sigmoid = tl.sigmoid(hidden)
            logit = _logits(hidden, sigmoid, a, log_weight, e, there, HAS_WEIGHT)
            p = tl.exp(logit - tl.load(log_sum + i * H + h))
            d_p = tl.sum(v * grad_v[None, :], axis=1) + tl.sum(f * own_grad_f[None, :], axis=1)
            d_l = p * (d_p - mean)
            d_hidden = _through_score(d_l, a, hidden, sigmoid)
            d_q += tl.where((heads == h)[:, None], tl.sum(d_hidden, axis=0)[None, :], 0.0)
            d_f += tl.dot(d_hidden, w, input_precision=PRECISION)
            d_f += p[:, None] * own_grad_f[None, :]
            tl.store(alpha + e * H + h, p, mask=there)
            tl.store(d_logit + e * H + h, d_l, mask=there)
        place = d_edge + e[:, None] * D_E + column[None, :]
        tl.store(place, d_f.to(d_edge.dtype.element_ty), mask=there[:, None] & in_e[None, :])
    place = d_receiver + i * (H * D) + heads[:, None] * D + d[None, :]
    mask = (heads < H)[:, None] & in_d[None, :]
    tl.store(place, d_q.to(d_receiver.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["n_spots", "n_each"])
def backward_by_sender(
    receiver,
    sender,
    edge,
    to_hidden,
    att,
    starts,  # [N + 1], of the edges by sender
    edges,  # [E], the edges of one sender after the other
    receivers,  # [E], of these edges
    grad,
    alpha,
    d_logit,
    d_sender,  # [N, C], output
    d_value,  # [N, C], output
    d_to_hidden,  # [P, C, D_e], output: parts of the sum over all edges
    d_att,  # [P, C], output
    n_spots,
    n_each,  # senders of a program
    stride_receiver,
    stride_sender,
    H: tl.constexpr,
    D: tl.constexpr,
    D_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute the gradients of some senders, for one head, and their edges' part of weights'."""
    program = tl.program_id(0)
    part, h = program // H, program % H
    d, column = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_E)
    in_d, in_e = d < D, column < D_E
    channel = h * D + d
    a = _row(att, 0, 0, channel, in_d)
    w = tl.trans(_rows(to_hidden, channel, D_E, column, in_d, in_e))
    d_a = tl.zeros([BLOCK_D], tl.float32)
    d_w = tl.zeros([BLOCK_D, BLOCK_E], tl.float32)
    for j in range(part * n_each, tl.minimum((part + 1) * n_each, n_spots)):
        k = _row(sender, j, stride_sender, channel, in_d)
        d_k = tl.zeros([BLOCK_D], tl.float32)
        d_v = tl.zeros([BLOCK_D], tl.float32)
        last = tl.load(starts + j + 1)
        for start in range(tl.load(starts + j), last, BLOCK_K):
            place = start + tl.arange(0, BLOCK_K)
            there = place < last
            e = tl.load(edges + place, mask=there, other=0)
            i = tl.load(receivers + place, mask=there, other=0)
            q = _rows(receiver, i, stride_receiver, channel, there, in_d)
            f = _rows(edge, e, D_E, column, there, in_e)
            grad_v = _rows(grad, i, H * D + D_E, channel, there, in_d)
            p = tl.load(alpha + e * H + h, mask=there, other=0.0)
            d_l = tl.load(d_logit + e * H + h, mask=there, other=0.0)
            hidden = tl.dot(f, w, input_precision=PRECISION) + q + k[None, :]
            sigmoid = tl.sigmoid(hidden)
            d_hidden = _through_score(d_l, a, hidden, sigmoid)
            d_k += tl.sum(d_hidden, axis=0)
            d_v += tl.sum(p[:, None] * grad_v, axis=0)
            d_a += tl.sum(d_l[:, None] * hidden * sigmoid, axis=0)
            d_w += tl.dot(tl.trans(d_hidden), f, input_precision=PRECISION)
        out = j * (H * D) + channel
        tl.store(d_sender + out, d_k.to(d_sender.dtype.element_ty), mask=in_d)
        tl.store(d_value + out, d_v.to(d_value.dtype.element_ty), mask=in_d)
    out = part * (H * D) + channel
    tl.store(d_att + out, d_a, mask=in_d)
    place = d_to_hidden + out[:, None] * D_E + column[None, :]
    tl.store(place, d_w, mask=in_d[:, None] & in_e[None, :])
