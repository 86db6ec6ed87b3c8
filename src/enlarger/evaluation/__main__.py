"""`python -m enlarger.evaluation RESULTS HR --metrics psnr-y,ssim-y,lpips`: a folder of results against the truth."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from enlarger.errors import EnlargerError, PartialError


def main(arguments: list[str] | None = None) -> int:
    """Measure, print one line per picture and the means, and return the exit code."""
    from enlarger.evaluation.folders import measure_folder
    from enlarger.evaluation.metrics import Judge

    parser = argparse.ArgumentParser(prog="python -m enlarger.evaluation", description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("references", type=Path)
    parser.add_argument("--sources", type=Path, help="folder of the inputs, for consistency and colour-shift")
    parser.add_argument("--metrics", default="psnr-y,ssim-y,lpips")
    parser.add_argument("--border", type=int, default=4, help="pixels left out on each side (default 4)")
    parser.add_argument("--vgg", type=Path, action="append", default=[], help="file of VGG16; repeat for several")
    options = parser.parse_args(arguments)
    out = sys.stdout
    try:
        judge = Judge(options.metrics.split(","), options.vgg)
        missing = judge.unavailable(("reference", "source") if options.sources else ("reference",))
        for name, reason in missing.items():
            sys.stderr.write(f"{name}: unavailable: {reason}\n")
        names = [name for name in judge.metrics if name not in missing]
        out.write("\t".join(["picture", *names]) + "\n")
        totals, failed = dict.fromkeys(names, 0.0), 0
        count = 0
        for record in measure_folder(
            judge,
            options.results,
            options.references,
            border=options.border,
            sources=options.sources,
            without=frozenset(missing),
        ):
            if record.error:
                failed += 1
                sys.stderr.write(f"{record.name}: {record.error}\n")
                continue
            count += 1
            for name in names:
                totals[name] += record.values[name]
            out.write("\t".join([record.name, *(f"{record.values[name]:.4f}" for name in names)]) + "\n")
            out.flush()
        if count:
            out.write("\t".join([f"mean of {count}", *(f"{totals[name] / count:.4f}" for name in names)]) + "\n")
        return PartialError.exit_code if failed else 0
    except EnlargerError as error:
        sys.stderr.write(f"enlarger: error: {error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
