"""One page about a base: its layout, sizes and retention, curves and heat maps, and the tasks that belong to it."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

from recast_cli.engine.base.base import Base, parameters
from recast_cli.engine.base.header import stored_as
from recast_cli.engine.measure.diagnose import BankDiagnosis, ModuleChange, RoleDiagnosis, aligned, similarity
from recast_cli.engine.report.figures import (
    STYLE,
    Tasks,
    bank_table,
    base_figure,
    check_plot,
    in_page,
    number,
    tasks_figure,
)
from recast_cli.engine.report.html import Markup, cards, document, folded, section, table, text, tinted, with_bar
from recast_cli.engine.storage.atomic import write_text
from recast_cli.engine.task.record import TaskRecord
from recast_cli.engine.units import percent, show_bytes
from recast_cli.version import __version__


@dataclass(frozen=True)
class Learned:
    """A task as the page shows it.

    Attributes:
        record: The content of its task.yaml.
        vector: Its coefficients as the file has them.
        places: The entries that it chose, (vector, entry); None where it chose none.
        changes: The same beside the base's: of the layout's modules, then of the vectors that `places` are of.
        bytes: Of its files without task.yaml.
    """

    record: TaskRecord
    vector: list[float]
    places: list[tuple[int, int]] | None
    changes: list[ModuleChange]
    bytes: int

    @property
    def chosen(self) -> list[ModuleChange]:
        """The changes that are of vectors."""
        return self.changes[len(self.changes) - len({vector for vector, _ in self.places or ()}) :]

    @property
    def of_layout(self) -> list[ModuleChange]:
        """The changes that are of the layout's modules; none where the task chose entries alone."""
        return self.changes[: len(self.changes) - len(self.chosen)]


def write_report(
    base: Base,
    banks: list[BankDiagnosis],
    roles: Sequence[RoleDiagnosis],
    tasks: Sequence[Learned],
    path: Path,
) -> None:
    """Write the page of a base that was read from a file, and of its tasks; equal input gives equal bytes.

    Raises:
        RecastError: No file can be put there.
    """
    check_plot(path)
    with matplotlib.rc_context(STYLE):
        parts = [
            heading(base),
            cards(key_facts(base, tasks)),
            about_layout(base),
            about_retention(base),
            section(
                "Inside the templates",
                "Distance and entropy of the templates over the groups, and how alike the layers of a group are. "
                "Curves near each other and pale maps mean that templates hold different things.",
                in_page(base_figure(base, banks, roles), "Curves and heat maps of the templates"),
                folded("The same in numbers", bank_table(base, banks)),
            ),
            about_tasks(tasks),
            f"<footer>recast-cli {__version__} &nbsp;·&nbsp; base {base.base_id}</footer>",
        ]
    write_text(path, document(f"{base.source}: a RECAST base", "\n".join(parts)))


def heading(base: Base) -> str:
    """Title, and where the base comes from."""
    name = base.architecture.name if base.architecture else "architecture unknown"
    file = base.path.name if base.path else "in memory"
    return (
        f"<header><h1>{text(base.source, 120)}</h1>\n<p>{text(name)}, rewritten as mixtures of shared templates: "
        f"<code>{text(file)}</code>, base <code>{base.base_id[:8]}</code></p></header>"
    )


def key_facts(base: Base, tasks: Sequence[Learned]) -> list[tuple[str, str, str]]:
    """What a reader wants to know first."""
    layout, found, count = base.layout, base.verified, parameters(base.specs)
    worst = max(error["relative_error"] for error in base.errors.values())
    weights = ("weights", "exact", "of every module")
    if worst > 0:
        weights = ("largest error", f"{worst:.2g}", "of a module, relative")
    retention = ("retention", "–", "mimic --verify measures it")
    if found and found["agreement"] is not None:
        retention = ("retention", percent(found["agreement"]), f"of {found['images']:,} images alike")
    together = f"{show_bytes(sum(task.bytes for task in tasks))} together" if tasks else "none yet"
    return [
        ("coefficients a task", f"{layout.coefficients}", f"{layout.degrees_of_freedom} degrees of freedom"),
        weights,
        retention,
        ("parameters", f"{count:,}", f"source {base.source_parameters:,}"),
        (
            "file",
            show_bytes(base.path.stat().st_size) if base.path else "–",
            stored_as(base.compression) if base.codes else f"templates in {base.solver['dtype']}",
        ),
        ("tasks here", f"{len(tasks)}", together),
    ]


def about_layout(base: Base) -> str:
    """A row a role and shape."""
    layout = base.layout
    total = parameters(base.specs)
    rows = []
    for (role, shape), banks in layout.roles.items():
        modules = sum(len(bank.modules) for bank in banks)
        held = sum(bank.stored * bank.numel for bank in banks)
        n = sorted({bank.stored for bank in banks})
        rows.append(
            [
                role,
                " × ".join(map(str, shape)),
                str(modules),
                str(len(banks)),
                "–".join(map(str, (n[0], n[-1]) if len(n) > 1 else n)) + (", cut in two" if banks[0].means else ""),
                str(sum(len(bank.modules) * bank.templates * layout.sets for bank in banks)),
                with_bar(f"{held:,}", held / total),
            ]
        )
    share = layout.template_parameters / total
    words = (
        f"Layout <code>{text(layout.name)}</code>: {len(layout.modules)} modules in {len(layout.banks)} banks, "
        f"K = {layout.sets}. {100 * share:.1f} % of all parameters are in templates, which every task shares; "
        f"the rest is the source's own. Solver: {text(str(base.solver.get('name', 'exact')))}."
    )
    columns = ("role", "shape", "modules", "banks", "templates a bank", "coefficients", "parameters in templates")
    return section("Layout", words, table("", columns, rows))


def about_retention(base: Base) -> str:
    """How well the base stands in for its source: by its weights, and on images where that was measured."""
    errors = sorted(base.errors.items(), key=lambda item: -item[1]["relative_error"])
    parts = []
    if errors[0][1]["relative_error"] == 0:
        words = "Every weight is exactly the source's."
    else:
        words = (
            f"The weights of {text(errors[0][0])} lost most: {errors[0][1]['relative_error']:.3g} relative "
            f"to their norm (cosine {errors[0][1]['cosine']:.4f})."
        )
        rows = [
            [name, number(error["relative_error"]), with_bar(f"{error['cosine']:.4f}", error["cosine"])]
            for name, error in errors
        ]
        parts.append(folded("By module", table("", ("module", "relative error", "cosine"), rows, tall=True)))
    found = base.verified
    if found is None:
        return section(
            "Retention",
            f"{words} On images it was not compared; <code>recast mimic … --verify DIR</code> does that.",
            *parts,
        )
    lowest = sorted(found["feature_cosine"].items(), key=lambda item: item[1])
    if found["agreement"] is not None:
        share = percent(found["agreement"])
        words += f" On {share} of {found['images']:,} images base and source give the same class."
    words += f" The outputs of {text(lowest[0][0])} differ most, with a mean cosine of {lowest[0][1]:.4f}."
    rows = [[name, with_bar(f"{cosine:.4f}", cosine)] for name, cosine in lowest]
    parts.append(folded("Outputs by module", table("", ("module", "cosine"), rows, tall=True)))
    return section("Retention", words, *parts)


def about_tasks(tasks: Sequence[Learned]) -> str:
    """What was learned on the base: accuracies, moves, and every coefficient."""
    if not tasks:
        return section(
            "Tasks", "No task in this folder belongs to this base. <code>recast adapt --task NAME</code> makes one."
        )
    named: Tasks = [(str(task.record["name"]), task.changes) for task in tasks]
    of_layout: Tasks = [(str(task.record["name"]), task.of_layout) for task in tasks if task.of_layout]
    alike = similarity(aligned([(task.vector, task.places) for task in tasks]))
    columns = ("task", "classes", "image size", "adapter", "size", "linear probe", "test top-1", "gain")
    colours = (
        "<p>Every coefficient, averaged over the sets. Orange is larger than the base's, blue smaller; the stronger "
        "the colour, the further it moved.</p>"
    )
    return section(
        "Tasks",
        "Each is its coefficients and a head; the linear probe is a head alone, on the base as it is.",
        table("", columns, [task_row(task) for task in tasks]),
        in_page(tasks_figure(named, alike), "How far the coefficients of each task moved"),
        *([colours, coefficient_table(of_layout)] if of_layout else []),
        *(chosen_table(task) for task in tasks if task.chosen),
    )


def task_row(task: Learned) -> list[str]:
    """A task in the words of the columns of `about_tasks`."""
    record, metrics = task.record, task.record["metrics"]
    top1, probe = metrics.get("test_top1"), metrics.get("linear_probe_test_top1")
    return [
        str(record["name"]),
        str(len(record["classes"])),
        f"{record['image_size']} px",
        adapter["name"] if (adapter := record.get("adapter")) else "–",
        show_bytes(task.bytes),
        "–" if probe is None else percent(probe),
        "–" if top1 is None else with_bar(percent(top1), top1),
        "–" if top1 is None or probe is None else f"{100 * (top1 - probe):+.1f}",
    ]


def coefficient_table(tasks: Tasks) -> str:
    """A row a module: the base's coefficients and each task's, tinted by how far they moved."""
    furthest = max((change.moved for _, changes in tasks for change in changes), default=0.0) or 1.0
    rows: list[list[str]] = []
    for moves in zip(*(changes for _, changes in tasks), strict=True):
        row = [moves[0].module, means(moves[0].base)]
        for change in moves:
            grown = sum(map(sum, change.coefficients)) >= sum(map(sum, change.base))
            row.append(tinted(means(change.coefficients), (1 if grown else -1) * change.moved / furthest))
        rows.append(row)
    return table("", ("module", "base", *(name for name, _ in tasks)), rows, tall=True)


def chosen_table(task: Learned) -> str:
    """A row a vector: what a task that chose its coefficients adds to its entries."""
    rows = [[change.module, means(change.coefficients)] for change in task.chosen]
    return table(f"Entries that {task.record['name']} chose", ("vector", "added"), rows, tall=True)


def means(sets: list[list[float]]) -> Markup:
    """Coefficients (K, n) averaged over the sets, as text."""
    averaged = [sum(column) / len(sets) for column in zip(*sets, strict=True)]
    return Markup(html.escape(" ".join(f"{value:+.3f}" for value in averaged)))
