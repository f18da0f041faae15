"""Plan the tool's own layout for every timm architecture, as a table.

    python tests/benchmarks/sweep_layouts.py [PATTERN]

Networks are built on the meta device (shapes alone, no memory). Exits with 1 where a layout is not exact, has no
coefficient, or more than the budget. tests/engine/layout/test_families.py does the same for one model of every family.
"""

from __future__ import annotations

import sys
import time
import warnings

import timm

from recast_cli.engine.architecture.build import skeleton
from recast_cli.engine.architecture.modules import find_modules
from recast_cli.engine.architecture.timm_config import quiet
from recast_cli.engine.layout.plan import BUDGET, pick_layout


def main() -> int:
    names = timm.list_models(sys.argv[1] if len(sys.argv) > 1 else "")
    started, bad = time.perf_counter(), 0
    print(f"{'architecture':55} coefficients  freedom  sets  banks  modules")
    for name in names:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            layout = pick_layout(find_modules(skeleton(name)))
        good = all(bank.exact for bank in layout.banks) and 0 < layout.coefficients <= BUDGET
        bad += not good
        print(
            f"{name:55} {layout.coefficients:12} {layout.degrees_of_freedom:8} {layout.sets:5} {len(layout.banks):6} "
            f"{len(layout.modules):8}{'' if good else '  NOT WITHIN THE RULES'}",
            flush=True,
        )
    print(f"{len(names)} architectures, {bad} outside the rules, {time.perf_counter() - started:.0f} s")
    return bad > 0


if __name__ == "__main__":
    sys.exit(main())
