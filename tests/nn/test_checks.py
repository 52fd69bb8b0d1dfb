import math

import pytest
import torch
from slides import noise, slide
from torch_geometric.data import Batch, Data
from torch_geometric.utils import to_torch_csr_tensor

from stflow_graph.graph import SpatialGraph
from stflow_graph.nn.checks import check_graph, check_positions, check_spots

F, G, N = 12, 5, 20


def check(y_t: torch.Tensor, t: torch.Tensor, data: Data) -> None:
    check_spots(y_t, t, data.x, data.batch, F, G)
    check_positions(data.pos, N)
    check_graph(data)


def inputs() -> dict[str, torch.Tensor]:
    data = SpatialGraph(6)(slide(N, F))
    return {"y_t": noise(N, G), "t": torch.tensor([0.5]), "batch": None, **data.to_dict()}


@pytest.mark.filterwarnings("ignore:.*[Ss]parse:UserWarning")
def test_one_slide_several_slides_and_sparse_edges_pass():
    y_t, t, data = noise(N, G), torch.tensor([0.5]), SpatialGraph(6)(slide(N, F))
    check(y_t, t, data)
    data.edge_index = to_torch_csr_tensor(data.edge_index.flip(0), size=(N, N))
    check(y_t, t, data)
    check(y_t, torch.rand(2), Batch.from_data_list([SpatialGraph(6)(slide(10, F))] * 2))


REFUSED = [
    ("y_t", lambda y: y[:, :-1], r"y_t must be \[20, 5\].*got \[20, 4\]"),
    ("y_t", lambda y: y[:-1], r"y_t must be \[20, 5\].*got \[19, 5\]"),
    ("y_t", lambda y: y[:1], r"y_t must be .*got \[1, 5\]"),
    ("y_t", torch.Tensor.long, r"of floats, got \[20, 5\] torch.int64"),
    ("t", lambda t: t[0], r"t must be \[1\].*got \[\]"),
    ("t", lambda t: t[:0], r"t must be \[1\].*got \[0\]"),
    ("t", lambda t: t.repeat(20)[:, None], r"got \[20, 1\]"),
    ("t", lambda t: t.repeat(20), r"t must be \[1\] .*got \[20\]"),
    ("t", torch.Tensor.long, r"t must be .*int64"),
    ("x", lambda x: x[:, :3], r"data.x must be \[20, 12\].*got \[20, 3\]"),
    ("batch", lambda _: torch.zeros(19).long(), r"data.batch must be \[20\] int64, got \[19\]"),
    ("batch", lambda _: torch.zeros(20), r"data.batch must be .*float32"),
    ("batch", lambda _: torch.arange(20) // 10, r"got \[1\] for slides 0 to 1"),
    ("batch", lambda _: torch.arange(20) // 20 - 1, r"got \[1\] for slides -1 to -1"),
    ("pos", lambda _: None, r"data.pos \[20, 2\] is needed"),
    ("pos", lambda pos: noise(20, 3), r"data.pos must be \[20, 2\], got \[20, 3\]"),
    ("pos", lambda pos: pos * math.nan, r"data.pos \[20, 2\] has 20 rows that are not finite"),
    ("edge_index", lambda _: None, r"data.edge_index is needed: .*SpatialGraph"),
    ("edge_attr", lambda _: None, r"data.edge_attr \[E, D\] is needed: .*graph transform"),
    ("edge_index", torch.Tensor.int, r"edge_index must be \[2, E\] int64, got .* torch.int32"),
    ("edge_index", lambda e: e.T, r"must be \[2, E\] int64, got \[\d+, 2\]"),
    ("edge_index", lambda e: e + 1, r"\[2, \d+\] must name spots 0 to 19, got 1 to 20"),
    ("edge_index", lambda e: e - 1, r"must name spots 0 to 19, got -1 to 18"),
]


@pytest.mark.parametrize(("name", "change", "message"), REFUSED)
def test_wrong_inputs_are_refused_with_their_shape(name, change, message):
    values = inputs()
    values[name] = change(values[name])
    y_t, t = values.pop("y_t"), values.pop("t")
    with pytest.raises(ValueError, match=message):
        check(y_t, t, Data(**values))


def test_edges_between_slides_are_refused():
    data = Batch.from_data_list([SpatialGraph(6)(slide(n, F)) for n in (12, 8)])
    data.edge_index[:, :2] = torch.tensor([[19, 3], [0, 15]])
    with pytest.raises(ValueError, match=r"data.edge_index \[2, \d+\] has 2 edges between slides"):
        check(noise(N, G), torch.rand(2), data)
    t = torch.rand(2, 1)
    with pytest.raises(ValueError, match=r"t must be \[n_slides\] .*got \[2, 1\]"):
        check(noise(N, G), t, data)
