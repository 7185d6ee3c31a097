"""One picture of a run for a terminal of 80 x 24 or more, from the document that `training.look` makes."""

from __future__ import annotations

from itertools import accumulate
from textwrap import wrap

from rich.console import Group, RenderableType
from rich.layout import Layout
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tunesmith.track.plot import Series, plot

STATUS = {"running": "green", "finished": "blue", "stopped": "yellow", "failed": "red", "lost": "red"}
RAW, SMOOTH, HELD_OUT, RATE, NORM = "grey42", "bold cyan", "bold dark_orange", "magenta", "green"
SMOOTHING_SHARE = 25
"""The bold line of the training loss is the mean over a 25th of the steps on either side: single batches are noisy."""
WIDE = 112


def frame(look: dict, width: int, height: int) -> RenderableType:
    """The run as a renderable of exactly `width` x `height` characters; the small ones lose curves, never the numbers."""
    notes = _notes(look, width - 4, 7 if look["status"] == "failed" else 3 if height < 30 else 6)
    note_rows = len(notes) + 2
    top = 4
    plots = height - top - note_rows
    layout = Layout()
    layout.split_column(Layout(_head(look, width), size=top, name="head"), Layout(name="plots", size=max(plots, 4)),
                        Layout(Panel(Group(*notes), title="events", title_align="left", border_style="grey37"), size=note_rows))
    if width >= WIDE:
        side = width // 3
        layout["plots"].split_row(Layout(_loss(look, width - side, plots)), Layout(name="side", size=side))
        upper = plots // 2
        layout["side"].split_column(Layout(_curve(look, "learning_rate", "learning rate", RATE, side, upper), size=upper),
                                    Layout(_curve(look, "grad_norm", "gradient norm", NORM, side, plots - upper)))
    elif plots >= 14:
        rate = 6 if plots < 20 else plots // 3
        layout["plots"].split_column(Layout(_loss(look, width, plots - rate)),
                                     Layout(_curve(look, "learning_rate", "learning rate", RATE, width, rate), size=rate))
    else:
        layout["plots"].update(_loss(look, width, plots))
    return layout


def _head(look: dict, width: int) -> RenderableType:
    title = Table.grid(expand=True)
    title.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    title.add_column(justify="right", no_wrap=True)
    title.add_row(Text.assemble((f" {look['run_id']}", "bold"), (f"  {look['base']}", "dim")),
                  Text(f"● {look['status']} ", f"bold {STATUS.get(look['status'], 'white')}"))
    total = look["total_steps"] or 0
    bar = Table.grid(expand=True, padding=(0, 1))
    bar.add_column(ratio=1)
    bar.add_column(no_wrap=True)
    bar.add_row(ProgressBar(total=max(total, 1), completed=look["step"], complete_style=STATUS.get(look["status"], "white"),
                            finished_style=STATUS.get(look["status"], "white"), style="grey23"),
                Text(f"{look['step']}/{total or '?'} steps  epoch {look['epoch']}/{look['epochs']} "))
    numbers = [("loss", _number(look["train_loss"]), SMOOTH), ("held-out", _number(look["eval_loss"]), HELD_OUT),
               ("best", f"{look['best']['eval_loss']:.4g} at {look['best']['step']}" if look["best"] else "-", ""),
               ("rate", _rate(look["learning_rate"]), RATE),
               ("tok/s", f"{look['tokens_per_second']:.0f}" if look["tokens_per_second"] else "-", ""),
               ("peak", f"{look['peak_memory_bytes'] / 1e9:.2f} GB" if look["peak_memory_bytes"] else "-", ""),
               ("left", _clock(look["seconds_left"]), "") if look["seconds_left"] is not None
               else ("took", _clock(look["seconds"]), "")]
    table = Table.grid(expand=True)
    for _ in numbers:
        table.add_column(justify="center", no_wrap=True)
    table.add_row(*(Text(name, "dim") for name, _, _ in numbers))
    table.add_row(*(Text(value, style) for _, value, style in numbers))
    return Group(title, bar, table)


def _loss(look: dict, width: int, height: int) -> Panel:
    loss, held_out = look["curves"]["loss"], look["curves"]["eval_loss"]
    series = [Series(loss, RAW, joined=len(loss) < width), Series(held_out, HELD_OUT, marked=len(held_out) < width // 4),
              Series(_smooth(loss), SMOOTH)]
    legend = Text.assemble("loss  ", ("━ train", SMOOTH), "  ", ("● held-out", HELD_OUT))
    return _panel(legend, series, look, width, height, "{:.3g}".format)


def _curve(look: dict, key: str, title: str, style: str, width: int, height: int) -> Panel:
    label = _rate if key == "learning_rate" else "{:.3g}".format
    return _panel(Text(title), [Series(look["curves"][key], style)], look, width, height, label, from_zero=True)


def _panel(title: Text, series: list[Series], look: dict, width: int, height: int, label, from_zero: bool = False) -> Panel:
    lines = plot(series, width - 4, max(3, height - 2), x_end=look["total_steps"] or look["step"] or 1, label=label,
                 from_zero=from_zero)
    return Panel(Group(*lines), title=title, title_align="left", border_style="grey37")


def _smooth(points: list[list[float]]) -> list[list[float]]:
    """Centred, so that it does not lag; one running sum, whatever the width."""
    reach = len(points) // SMOOTHING_SHARE
    sums = [0.0, *accumulate(y for _, y in points)]
    out = []
    for i, (x, _) in enumerate(points):
        r = min(reach, i, len(points) - 1 - i)
        out.append([x, (sums[i + r + 1] - sums[i - r]) / (2 * r + 1)])
    return out


def _notes(look: dict, width: int, count: int) -> list[Text]:
    """The newest `count` lines of events, the newest last. Those of an error are whole, the others end at the border."""
    lines = []
    for e in look["events"]:
        facts = {k: v for k, v in e.items() if k not in ("at", "event", "code", "fix", "message", "step")}
        if e["event"] == "warning":
            lines.append(Text.assemble((f"{e['at'][11:16]} ", "dim"), ("warning ", "yellow"), e["message"]))
        elif e["event"] == "failed":
            lines += _wrapped(f"{e['at'][11:16]} ", f"failed  {e.get('error', '')}", width, "bold red")
        elif e["event"] == "reason":
            lines += _wrapped("why   ", e["why"] or "", width, "") + _wrapped("do    ", e["fix"] or "", width, "yellow")
        else:
            style = "bold blue" if e["event"] == "finished" else ""
            detail = "  ".join(f"{k} {str(v)[:90]}" for k, v in facts.items() if not isinstance(v, dict | list))
            lines.append(Text.assemble((f"{e['at'][11:16]} ", "dim"), (e["event"], style), "  ", (detail, "dim")))
    if look["status"] in ("lost", "stopped"):
        lines.append(Text(("its process is gone; " if look["status"] == "lost" else "") + "go on: tunesmith train "
                          f"{look['recipe_path']} --resume {look['run_id']}", "yellow"))
    for line in lines:
        line.truncate(width, overflow="ellipsis")
        line.no_wrap = True
    return lines[-count:] or [Text("nothing yet", "dim")]


def _wrapped(label: str, text: str, width: int, style: str) -> list[Text]:
    lines = wrap(text, width - len(label), max_lines=3, placeholder=" ...")
    return [Text.assemble((label if i == 0 else " " * len(label), "dim"), (line, style)) for i, line in enumerate(lines)]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _rate(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1e}".replace("e-0", "e-").replace("e+00", "") if value else "0"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes:02d}:{rest:02d}"
