"""Pieces of a page in HTML that needs nothing but itself: no network, no script, no font of its own."""

import html
from collections.abc import Sequence

from recast_cli.engine.report.heat_maps import short

CSS = """
:root{color-scheme:light;--ink:#1b1f24;--dim:#667080;--line:#e3e6ea;--soft:#f6f7f9;--blue:#0072b2}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;color:var(--ink);background:#fff;
margin:0 auto;max-width:1080px;padding:2.5rem 1.5rem 3rem}
h1{font-size:1.7rem;line-height:1.25;margin:0;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:2.75rem 0 .25rem;padding-top:1.25rem;border-top:1px solid var(--line)}
p{overflow-wrap:anywhere;margin:.25rem 0 1rem;max-width:46rem}
header p,.dim{color:var(--dim)}
code{font:.9em ui-monospace,"DejaVu Sans Mono",monospace;overflow-wrap:anywhere}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(140px,1fr));gap:.75rem;margin:1.5rem 0 0}
.card{background:var(--soft);border-radius:10px;padding:.8rem 1rem}
.card div{color:var(--dim);font-size:.8rem}
.card strong{display:block;font-size:1.35rem;line-height:1.35;font-weight:600;overflow-wrap:anywhere}
.wide{overflow-x:auto;margin:.75rem 0}
.wide svg{display:block;width:100%;min-width:700px;height:auto}
.tall{max-height:34rem;overflow-y:auto}
table{border-collapse:collapse;font-size:.84rem;width:100%;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--dim);padding:.25rem 0}
th,td{padding:.32rem .9rem .32rem 0;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th{color:var(--dim);font-weight:600;position:sticky;top:0;background:#fff}
th:first-child,td:first-child{text-align:left}
td.tint{padding-right:.6rem;padding-left:.6rem}
.bar{display:inline-block;vertical-align:middle;width:7rem;height:.55rem;border-radius:.3rem;background:var(--line);
margin-left:.6rem;overflow:hidden}
.bar span{display:block;height:100%;background:var(--blue)}
details{margin:1rem 0}
summary{cursor:pointer;color:var(--blue)}
footer{margin-top:3rem;color:var(--dim);font-size:.8rem}
@media(max-width:600px){body{padding:1.25rem 1rem 2rem}h1{font-size:1.35rem}
.cards{gap:.5rem}.card strong{font-size:1.1rem}}
@media print{.tall{max-height:initial}}
"""


class Markup(str):
    """Text that is HTML already; any other is escaped where it is put into a page."""


class Cell(Markup):
    """A whole cell of a table."""


def text(value: str, limit: int = 80) -> Markup:
    """`value` as HTML, in printable characters and shortened to `limit`."""
    return value if isinstance(value, Markup) else Markup(html.escape(short(value, limit)))


def document(title: str, body: str) -> str:
    """A whole page."""
    name = html.escape(title)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{name}</title><style>{CSS}</style></head>\n<body>{body}\n</body></html>\n"
    )


def table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]], tall: bool = False) -> str:
    """A table whose first column is text and whose others are numbers; a `tall` one scrolls by itself."""
    lines = ["".join(f"<th>{text(cell)}</th>" for cell in columns)]
    lines += ["".join(cell if isinstance(cell, Cell) else f"<td>{text(cell)}</td>" for cell in row) for row in rows]
    head = f"<caption>{text(caption)}</caption>\n" if caption else ""
    kind = "wide tall" if tall else "wide"
    return f'<div class="{kind}"><table>{head}<tr>' + "</tr>\n<tr>".join(lines) + "</tr>\n</table></div>"


def tinted(value: str, strength: float) -> Cell:
    """A cell whose ground goes from blue (-1) over white (0) to orange (1)."""
    red, green, blue = (0, 114, 178) if strength < 0 else (230, 159, 0)
    share = round(min(1.0, abs(strength)) * 0.6, 3)
    return Cell(f'<td class="tint" style="background:rgba({red},{green},{blue},{share})">{text(value)}</td>')


def with_bar(value: str, share: float) -> Markup:
    """A value with a bar beside it, `share` of it filled."""
    width = round(100 * min(1.0, max(0.0, share)), 1)
    return Markup(f'{text(value)}<span class="bar"><span style="width:{width}%"></span></span>')


def cards(facts: Sequence[tuple[str, str, str]]) -> str:
    """A card each: what it is, its value, and a word more."""
    inside = "\n".join(
        f'<div class="card"><div>{text(name)}</div><strong>{text(value)}</strong><div>{text(more, 120)}</div></div>'
        for name, value, more in facts
    )
    return f'<div class="cards">{inside}</div>'


def section(title: str, words: str, *parts: str) -> str:
    """A heading, a sentence, and what belongs to it; words are HTML."""
    return "\n".join([f"<section><h2>{text(title)}</h2>", f"<p>{words}</p>", *parts, "</section>"])


def folded(title: str, *parts: str) -> str:
    """What is seen once its title is clicked."""
    return "\n".join([f"<details><summary>{text(title)}</summary>", *parts, "</details>"])
