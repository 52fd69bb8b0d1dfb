"""The report of an evaluation: one self-contained HTML page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

import numpy as np

from stflow_graph.evaluation.baselines import DARKNESS, NAMES
from stflow_graph.evaluation.charts import (
    MapFrame,
    Series,
    colour_scale,
    gene_chart,
    map_png,
    strip_chart,
)
from stflow_graph.evaluation.scores import CEILING, Evaluation, Row, SlideEvaluation
from stflow_graph.stats.metrics import mean_of_defined
from stflow_graph.version import __version__

MOST_MAPS = 8  # slides with maps
_MOST_MAP_MODELS = 3
_COLOURS = 4  # m0 to m3 in the style sheet
_UNITS = {"log1p": "log1p(count)", "log1p_normalised": "log1p(10⁴ · count / total)"}
# metric: heading, what it is
_COLUMNS = {
    "pearson_pooled": ("pooled PCC", "over the spots of all test slides of a fold together"),
    "spearman": ("Spearman", "rank correlation over spots"),
    "mse": ("MSE", "mean squared error"),
    "r2": ("R²", "1 − MSE / variance of the truth; 0 is the slide's own mean"),
    "moran_difference": ("Δ Moran", "Moran's I of prediction − truth; above 0 is too smooth"),
    "relative_variation": ("RVD", "relative variation distance; 1 is a constant prediction"),
    "gene_correlation_distance": ("gene-gene", "mean difference of gene-gene correlations"),
    "crps": ("CRPS", "continuous ranked probability score of the samples"),
    "energy_score": ("energy", "energy score of the samples, all genes together"),
    "energy_distance": ("energy dist.", "between the distributions of values over a slide"),
    "coverage_50": ("in 50%", "share of the truth inside the samples' 50% interval"),
    "coverage_80": ("in 80%", "the same, 80%"),
    "coverage_90": ("in 90%", "the same, 90%"),
    "width_80": ("80% width", "mean width of the 80% interval; narrower is sharper"),
}


def render_report(evaluation: Evaluation) -> str:
    """Return the page as HTML with styles, charts and maps inside it; it needs no network."""
    models = [row.name for row in evaluation.rows if row.kind == "model"]
    n_spots = sum(map(len, evaluation.slides))
    slides = _count(len(evaluation.slides), "slide")
    title = f"{' and '.join(models)}: predicted expression on {slides}"
    genes = sorted({len(slide.genes) for slide in evaluation.slides})
    parts = [
        f"<header><h1>{escape(title)}</h1>",
        f"<p class='lead'>{n_spots:,} spots, {' or '.join(map(str, genes))} genes, "
        f"{escape(_UNITS[evaluation.target])}</p>",
        *(f"<p class='facts'>{escape(name)}</p>" for name in evaluation.protocols),
        *(f"<p>{_headline(row, evaluation)}</p>" for row in evaluation.rows if row.name in models),
        "</header><main>",
        _section("Scores", _score_table(evaluation) + _slide_table(evaluation)),
        _section("Further measures, means over slides", _measure_table(evaluation)),
    ]
    for i, slide in enumerate(evaluation.slides):
        parts.append(_slide_section(slide, evaluation, models, maps=i < MOST_MAPS))
    if len(evaluation.slides) > MOST_MAPS:
        parts.append(f"<p>Maps are shown for the first {MOST_MAPS} slides.</p>")
    if evaluation.notes:
        items = "".join(f"<li>{escape(note)}</li>" for note in evaluation.notes)
        parts.append(_section("What was left out", f"<ul>{items}</ul>"))
    parts += [_section("What the score means", _limits(evaluation)), _provenance(evaluation)]
    parts.append("</main>")
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body>{body}</body></html>\n"
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _number(value: float | None, places: int = 3, sign: bool = False) -> str:
    """Return a number for people: a true minus, and a dash where there is none."""
    if value is None or not np.isfinite(value):
        return "–"
    value = round(value, places) + 0.0  # no minus before a zero
    text = f"{value:+.{places}f}" if sign else f"{value:.{places}f}"
    return text.replace("-", "−")


def _between(ends: tuple[float, float] | None, sign: bool = False) -> str:
    if ends is None or not np.isfinite(ends).all():
        return ""
    return f"{_number(ends[0], sign=sign)} to {_number(ends[1], sign=sign)}"


def _headline(row: Row, evaluation: Evaluation) -> str:
    text = f"<strong>{escape(row.name)}</strong> reaches a mean correlation of "
    text += f"<strong>{_number(row.mean)}</strong>"
    if _between(row.interval):
        text += f" ({_between(row.interval)})"
    if np.isfinite(row.of_ceiling):
        text += f", {row.of_ceiling:.0%} of what the noise of these counts allows"
    if row.difference is not None and evaluation.best_baseline:
        more = "above" if row.difference >= 0 else "below"
        text += f", and {_number(abs(row.difference))} {more} the best baseline, "
        text += f"{escape(evaluation.best_baseline)} (difference "
        text += f"{_between(row.difference_interval, sign=True)})"
    return text + "."


def _difference(row: Row) -> str:
    if row.difference is None:
        return ""
    between = _between(row.difference_interval, sign=True)
    return f"<b>{_number(row.difference, sign=True)}</b> ({between})"


def _score_table(evaluation: Evaluation) -> str:
    compared = evaluation.best_baseline is not None
    head = ["", "mean", "95% interval", "", "of ceiling"]
    head += ["beyond best baseline"] if compared else []
    lines = []
    for row in evaluation.rows:
        share = f"{row.of_ceiling:.0%}" if np.isfinite(row.of_ceiling) else "–"
        cells = [f"<b>{_number(row.mean)}</b>", _between(row.interval), _strip(row, evaluation)]
        cells += [share if row.name != CEILING else ""]
        cells += [_difference(row)] if compared else []
        lines.append((row, cells))
    caption = (
        "Pearson correlation (PCC) over the spots of a slide, mean over genes and slides. "
        "The dashed line is the noise ceiling."
    )
    return _table(caption, head, lines)


def _slide_table(evaluation: Evaluation) -> str:
    # a table of its own: with many slides it scrolls, and the means stay in view
    slides = [slide.name for slide in evaluation.slides]
    lines = [(row, [_number(row.slides.get(name)) for name in slides]) for row in evaluation.rows]
    return _table("PCC of each slide, mean over genes.", ["", *slides], lines)


def _measure_table(evaluation: Evaluation) -> str:
    rows = evaluation.rows
    shown = [
        metric
        for metric in _COLUMNS
        if any(np.isfinite(row.others.get(metric, np.nan)) for row in rows)
    ]
    lines = [
        (
            row,
            [
                _number(row.others.get(metric), sign=metric == "moran_difference")
                for metric in shown
            ],
        )
        for row in rows
        if row.others
    ]
    key = "".join(
        f"<b>{escape(h)}</b> {escape(text)}. " for h, text in (_COLUMNS[m] for m in shown)
    )
    table = _table("Means over genes and slides.", ["", *(_COLUMNS[m][0] for m in shown)], lines)
    return f"{table}<p class='facts wide'>{key}{escape(_calibrated(evaluation))}</p>"


def _calibrated(evaluation: Evaluation) -> str:
    """Say what coverage to expect of as many samples as there are."""
    text = ""
    for row in evaluation.rows:
        slide = next((s for s in evaluation.slides if row.name in s.samples), None)
        if slide is not None:
            shares = [f"{each.calibrated:.0%}" for each in slide.scores[row.name].coverage]
            text += f"With the {len(slide.samples[row.name])} samples of {row.name}, a calibrated "
            text += f"model would have {', '.join(shares)} inside. "
    return text


def _table(caption: str, head: Sequence[str], lines: Sequence[tuple[Row, list[str]]]) -> str:
    """Return a table; the cells are HTML already."""
    headings = "".join(f"<th scope='col'>{escape(each)}</th>" for each in head)
    body = "".join(
        f"<tr class='{row.kind}'><th scope='row'>{escape(row.name)}</th>"
        + "".join(f"<td>{cell}</td>" for cell in cells)
        + "</tr>"
        for row, cells in lines
    )
    return (
        f"<div class='scroll'><table><caption>{escape(caption)}</caption>"
        f"<thead><tr>{headings}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _strip(row: Row, evaluation: Evaluation) -> str:
    known = [r.mean for r in evaluation.rows] + [end for r in evaluation.rows for end in r.interval]
    known = [value for value in known if np.isfinite(value)]
    if not np.isfinite(row.mean) or row.name == CEILING:
        return ""
    span = min(0.0, *known), 1.04 * max(0.1, *known)
    return strip_chart(row.mean, row.interval, evaluation.rows[-1].mean, span)


def _slide_section(
    slide: SlideEvaluation, evaluation: Evaluation, models: Sequence[str], *, maps: bool
) -> str:
    facts = [_count(len(slide), "spot")]
    if slide.fold is not None:
        facts.append(f"fold {slide.fold}")
    if slide.held_out is not None:
        facts.append("held out of training" if slide.held_out else "in the training set")
    facts.append(f"noise ceiling {_number(mean_of_defined(slide.ceiling), 2)}")
    body = f'<p class="facts">{escape(" · ".join(facts))}</p>'
    present = sorted(
        (name for name in models if name in slide.scores),
        key=lambda name: -np.nan_to_num(slide.scores[name].mean("pearson"), nan=-2),
    )
    body += _gene_chart(slide, present, models, evaluation.best_baseline)
    if maps:
        body += _maps(slide, present)
    return _section(f"Slide {slide.name}", body)


def _gene_chart(
    slide: SlideEvaluation, present: Sequence[str], models: Sequence[str], baseline: str | None
) -> str:
    def series(name: str) -> Series:
        style = f"m{models.index(name) % _COLOURS}" if name in models else "base"
        return Series(name, style, slide.scores[name].per_gene["pearson"])

    others = [*present[1:], *([baseline] if baseline in slide.scores else [])]
    bars, dots = series(present[0]), [series(name) for name in others]
    limit = Series(CEILING, "limit", slide.ceiling)
    if not np.isfinite(bars.values).any():
        return "<p>No gene has a correlation.</p>"
    label = f"Correlation of each gene on slide {slide.name}, {bars.name} as bars, best first"
    keys = [f'<span class="key bar {bars.style}">{escape(bars.name)}</span>']
    keys += [f'<span class="key dot {each.style}">{escape(each.name)}</span>' for each in dots]
    keys.append(f'<span class="key line">{CEILING}</span>')
    return (
        f"<h3>Correlation per gene</h3><p class='legend'>{''.join(keys)}</p>"
        f'<div class="scroll">{gene_chart(slide.genes, bars, dots, limit, label)}</div>'
    )


def _maps(slide: SlideEvaluation, present: Sequence[str]) -> str:
    """Return maps of the best, the median and the worst gene: the truth beside predictions."""
    pearson = slide.scores[present[0]].per_gene["pearson"]
    order = [int(i) for i in np.argsort(-pearson, kind="stable") if np.isfinite(pearson[i])]
    if not order:
        return ""
    with_units = [n for n in NAMES if n in slide.scores and n != DARKNESS]
    ranked = [n for n in with_units if np.isfinite(slide.scores[n].mean("pearson"))]
    best = max(ranked, key=lambda n: slide.scores[n].mean("pearson"), default=None)
    names = [*present[:_MOST_MAP_MODELS], *([best] if best else [])]
    frame = MapFrame.of(slide.coords, slide.um_per_px)
    chosen = {"Best": order[0], "Median": order[len(order) // 2], "Worst": order[-1]}
    rows = "".join(_gene_maps(which, i, slide, names, frame) for which, i in chosen.items())
    bar = "" if frame.bar_um is None else f" The grey bar is {frame.bar_um:,} µm."
    text = (
        f"Genes chosen by the score of {present[0]}. Within a row all maps have one colour scale, "
        f"{_UNITS[slide.target]}, from the 1st to the 99th percentile of what is shown.{bar}"
    )
    return f"<h3>Maps</h3><p class='facts'>{escape(text)}</p>{rows}"


def _gene_maps(
    which: str, gene: int, slide: SlideEvaluation, names: Sequence[str], frame: MapFrame
) -> str:
    shown = {"measured": slide.truth[:, gene]}
    shown |= {name: slide.predictions[name][:, gene] for name in names}
    ends = np.quantile(list(shown.values()), [0.01, 0.99], axis=1)
    low, high = float(ends[0].min()), float(ends[1].max())
    if high - low < 1e-9:
        high = low + 1.0
    width, height = (edge // 2 for edge in frame.size)
    name, figures = slide.genes[gene], ""
    for title, values in shown.items():
        data = base64.b64encode(map_png(frame, values, (low, high))).decode()
        text = f"{title} expression of {name} on slide {slide.name}"
        figures += (
            f'<figure><img alt="{escape(text)}" width="{width}" height="{height}" '
            f'src="data:image/png;base64,{data}"><figcaption>{escape(title)}'
            f"{_map_score(title, gene, slide)}</figcaption></figure>"
        )
    limit = f"noise ceiling {_number(slide.ceiling[gene], 2)}"
    scale = f"<span>{_number(low, 2)}</span><i></i><span>{_number(high, 2)}</span>"
    return (
        f'<div class="maps"><div class="which"><h4>{which}: {escape(name)}</h4>'
        f'<p class="facts">{limit}</p><p class="scale">{scale}</p></div>{figures}</div>'
    )


def _map_score(name: str, gene: int, slide: SlideEvaluation) -> str:
    if name not in slide.scores:
        return ""
    return f" <b>{_number(slide.scores[name].per_gene['pearson'][gene], 2)}</b>"


def _limits(evaluation: Evaluation) -> str:
    darkness = "darkness, 255 − the mean red value of a spot's patch, is untrained"
    depth = {
        "log1p": "log1p(count) carries each spot's sequencing depth, and how much tissue a patch "
        f"holds decides most of that ({darkness}, and often scores well). Evaluate "
        "log1p_normalised beside it before you say that a gene itself was predicted.",
        "log1p_normalised": "Counts are relative to each spot's total, so depth alone scores "
        f"little here ({darkness}); what is left is noisier, and the ceiling lower.",
    }
    texts = [
        "The Pearson correlation over spots rewards the pattern of a gene on the slide, not its "
        "level. MSE and R² judge the level.",
        depth[evaluation.target],
        "The noise ceiling is the correlation that a perfect model could reach with counts of this "
        "depth: each count is split in two halves by binomial thinning, whose correlation gives "
        "the reliability of the whole (Spearman-Brown). It is an estimate, and a gene's own can "
        "be 0.",
        f"Intervals are from {evaluation.n_bootstrap:,} resamples of the spots of each slide. They "
        "say nothing about further patients, and are too narrow where neighbouring spots are "
        "alike. Differences below about 0.03 on one slide are noise.",
    ]
    if evaluation.best_baseline:
        texts.append(
            "Baselines are fitted on the training slides of the same fold and the same embeddings. "
            "The best of them is chosen by the score shown, which favours the baseline."
        )
    texts.append(
        "A prediction is an estimate from the image. It is no measurement, and not for diagnosis."
    )
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def _provenance(evaluation: Evaluation) -> str:
    rows = [("stflow-graph", __version__), ("seed of the evaluation", str(evaluation.seed))]
    for slide in evaluation.slides:
        rows.append((f"{slide.name}, truth", slide.truth_file))
        for model, values in slide.provenance.items():
            text = ", ".join(f"{k} = {v}" for k, v in values.items() if v not in (None, "", []))
            rows.append((f"{slide.name}, {model}", text))
    body = "".join(
        f"<tr><th scope='row'>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in rows
    )
    return _section(
        "Provenance",
        "<details><summary>Files, checkpoints, seeds and versions</summary>"
        f'<div class="scroll"><table class="provenance"><tbody>{body}</tbody></table></div>'
        "</details>",
    )


_STYLE = """
:root { color-scheme: light dark; --text: #1b2230; --soft: #5c6675; --line: #dfe3ea;
  --page: #ffffff; --panel: #f6f7f9; --m0: #2f6fde; --m1: #d9730d; --m2: #0f9d7a; --m3: #a24bd1;
  --base: #7b8494; --limit: #1b2230; --map: transparent; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e9ef; --soft: #9aa4b3; --line: #333b48;
  --page: #14181f; --panel: #1d232c; --m0: #6ea0ff; --m1: #ff9f4a; --m2: #3fcaa5; --m3: #c887ee;
  --base: #98a2b3; --limit: #e6e9ef; --map: #d5dae2; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 2.2rem 1.4rem 4rem; color: var(--text);
  background: var(--page); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; padding-top: 1rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.3rem 0 .3rem; } h4 { font-size: 1rem; margin: 0; }
p { margin: .3rem 0; max-width: 92ch; } .wide { max-width: none; }
.lead, .facts, caption, .legend { color: var(--soft); }
.lead { margin-bottom: .9rem; } .facts, .legend { font-size: .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .4rem 0; }
caption { caption-side: bottom; text-align: left; font-size: .85rem; padding-top: .5rem; }
th, td { padding: .32rem .55rem; font-size: .93rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th:first-child { text-align: left; padding-left: 0; }
thead th { color: var(--soft); font-weight: 500; font-size: .85rem; }
tbody th { font-weight: 500; } tr.model th { font-weight: 700; }
tr.baseline, tr.reference, tr.baseline b, tr.reference b { color: var(--soft); font-weight: 400; }
tr.baseline th, tr.reference th { font-weight: 400; }
tr.model + tr.baseline > *, tr.baseline + tr.reference > *, tr.model + tr.reference > * {
  border-top: 2px solid var(--line); }
.strip { width: 150px; height: 14px; display: block; }
.strip .span { stroke: var(--base); stroke-width: 3; } .strip circle { fill: var(--base); }
tr.model .strip .span { stroke: var(--m0); } tr.model .strip circle { fill: var(--m0); }
.axis { stroke: var(--soft); stroke-width: 1; } .grid { stroke: var(--line); stroke-width: 1; }
.limit { stroke: var(--limit); stroke-width: 1.6; } .strip .limit { stroke-dasharray: 3 2; }
.genes { display: block; max-width: 100%; min-width: 560px; height: auto; }
.genes text { font-size: 11px; fill: var(--soft); text-anchor: end; }
.genes .gene { fill: var(--text); } .genes g:hover rect { opacity: .75; }
rect.m0, circle.m0 { fill: var(--m0); } rect.m1, circle.m1 { fill: var(--m1); }
rect.m2, circle.m2 { fill: var(--m2); } rect.m3, circle.m3 { fill: var(--m3); }
circle.m0, circle.m1, circle.m2, circle.m3, circle.base { stroke: var(--page); }
circle.base { fill: var(--base); }
.key { margin-right: 1.2rem; } .key::before { content: ""; display: inline-block;
  margin-right: .4rem; background: var(--c); width: .8rem; height: .8rem; vertical-align: -1px; }
.key.dot::before { border-radius: 50%; width: .6rem; height: .6rem; vertical-align: 0; }
.key.line::before { height: 2px; width: 1rem; background: var(--limit); vertical-align: 4px; }
.key.m0 { --c: var(--m0); } .key.m1 { --c: var(--m1); } .key.m2 { --c: var(--m2); }
.key.m3 { --c: var(--m3); } .key.base { --c: var(--base); }
.maps { display: flex; flex-wrap: wrap; gap: .8rem 1rem; align-items: center; margin: .7rem 0;
  padding: .8rem 1rem; background: var(--panel); border-radius: 10px; }
.which { flex: 0 0 150px; } figure { margin: 0; flex: 1 1 150px; max-width: 290px; }
figure img { width: 100%; height: auto; display: block; background: var(--map);
  border-radius: 8px; }
figcaption { font-size: .85rem; color: var(--soft); text-align: center; margin-top: .2rem; }
figcaption b { color: var(--text); }
.scale { display: flex; align-items: center; gap: .4rem; font-size: .8rem; color: var(--soft); }
.scale i { flex: 1; height: 9px; border-radius: 3px; background: SCALE; }
.provenance td { white-space: normal; text-align: left; font-size: .8rem; word-break: break-word; }
.provenance th { vertical-align: top; font-size: .85rem; }
""".replace("SCALE", colour_scale())
