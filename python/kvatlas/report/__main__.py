"""python -m kvatlas.report --db atlas.sqlite --out report.html"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

if not __package__:  # run as a file from a source tree: the compiled parts of kvatlas are not needed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from report import StoreError, report  # type: ignore[import-not-found]
else:
    from . import StoreError, report


def main() -> int:
    parser = argparse.ArgumentParser(prog="kvatlas report", description="Draws a store as one HTML file.")
    parser.add_argument("--db", required=True, metavar="FILE", help="store to draw")
    parser.add_argument("-o", "--out", default="report.html", metavar="FILE", help="page to write (default report.html)")
    parser.add_argument("--figures", metavar="FOLDER", help="also write the figures as SVG and PNG (needs matplotlib)")
    parser.add_argument("--points", type=int, default=100_000, metavar="N", help="most decode steps that the page carries (default 100000)")
    parser.add_argument("--title", metavar="TEXT", help="title of the page (default: the store's name)")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    arguments = parser.parse_args()
    try:
        done = report(arguments.db, arguments.out, points=arguments.points, title=arguments.title, figures=arguments.figures)
    except StoreError as error:
        print(f"kvatlas report: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps(done))
    else:
        print(f"{done['out']}: {done['drawn']:,} of {done['points']:,} decode steps and {done['workloads']:,} workloads, {done['bytes'] / 1e6:.1f} MB")
        for name in done["figures"]:
            print(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
