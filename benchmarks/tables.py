"""The tables of numbers: measures every benchmark that is there and writes docs/numbers.md and README's table.

    python benchmarks/tables.py --data FOLDER --gan RealESRGAN_x4plus.safetensors --vgg FILE [--vgg FILE] -o numbers

All engines do one picture before the next comes, so their seconds compare. A stopped run goes on where it was: what is
measured is kept in the folder of -o under a hash of input, settings and weights. A benchmark that is not there is left
out and named. The VGG16 files serve DISTS only; without them its column is missing.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "numbers.md"
README = ROOT / "README.md"

PROTOCOLS = ("set5", "set14", "bsd100", "urban100", "realsr")
ON_README = "set14"
OURS = ("interpolate", "pocket:preset=faithful", "pocket:preset=balanced", "pocket:preset=vivid")
METRICS = ("psnr-y", "ssim-y", "lpips", "dists", "consistency", "grid")

BEGIN, END = "<!-- made by benchmarks/tables.py -->", "<!-- to here -->"

HEAD = """\
# Numbers

Written by `python benchmarks/tables.py`; [measuring](measure.md) says what each metric is and how to read it.
{where}

LPIPS-Alex is an independent judge of pocket: no AlexNet feature is in its training. DISTS is not: its VGG16 is also
training's. Seconds are those of a machine that may have had other work; all engines took turns, so read them as ratios.

    {command}
"""


def main() -> int:
    """Measure and write; 1 when a benchmark could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder that holds Set5, Set14, BSD100, Urban100, RealSR")
    parser.add_argument("--gan", help="trained GAN weights to stand beside ours")
    parser.add_argument("--vgg", action="append", default=[], help="file of VGG16; may be repeated")
    parser.add_argument("-o", "--output", default="numbers", help="folder for all values and results [numbers]")
    parser.add_argument("--protocols", default=",".join(PROTOCOLS), help="only these, by commas")
    parser.add_argument("--limit", type=int, help="only the first pictures of each, to try it out")
    parser.add_argument("--dry", action="store_true", help="print the page instead of writing docs and README")
    options = parser.parse_args()
    folder = Path(options.output)
    # A file keeps its name in the tables, whatever folder it lies in.
    engines = [*OURS, *([f"gan@{options.gan}"] if options.gan else [])]
    measured = {name: table for name in options.protocols.split(",") if (table := measure(name, engines, options))}
    if not measured:
        return 1
    names = [*OURS, *([f"gan@{Path(options.gan).name}"] if options.gan else [])]
    command = (
        f"enlarger evaluate --protocol NAME --data FOLDER --metrics {','.join(METRICS)} --vgg FILE \\\n"
        f"        --engines {','.join(names)}"
    )
    text = "\n".join([HEAD.format(where=where(), command=command), *measured.values()])
    if options.dry:
        print(text)
        return 0
    PAGE.write_text(text, "utf-8")
    if ON_README in measured:
        README.write_text(with_table(README.read_text("utf-8"), measured[ON_README]), "utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {', '.join(measured)}; all values are in {folder}", file=sys.stderr)
    return 0


def measure(name: str, engines: list[str], options: argparse.Namespace) -> str | None:
    """The Markdown of one benchmark, None when it could not be measured."""
    from enlarger.cli.main import main as enlarger

    folder = Path(options.output) / name
    words = ["evaluate", "--protocol", name, "--data", options.data, "--engines", ",".join(engines), "-o", str(folder)]
    words += ["--metrics", ",".join(METRICS), *(word for file in options.vgg for word in ("--vgg", file))]
    words += ["--limit", str(options.limit)] if options.limit else []
    print(f"--- {name}", file=sys.stderr)
    stdout, sys.stdout = sys.stdout, sys.stderr
    try:
        code = enlarger(words)
    finally:
        sys.stdout = stdout
    if code:
        print(f"{name}: left out, evaluate ended with {code}", file=sys.stderr)
        return None
    # Who reads it has the folders elsewhere: the command stands at the top of the page, without paths.
    text = (folder / "table.md").read_text("utf-8")
    return re.sub(r"^Made by `.*`\. Means", "Means", text, flags=re.MULTILINE)


def with_table(page: str, table: str) -> str:
    """The page with the first table of `table` between the marks."""
    lines = table.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("| "))
    last = next(number for number in range(first, len(lines) + 1) if number == len(lines) or not lines[number])
    before, _, rest = page.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"README.md has no place for the table: {BEGIN} ... {END}")
    return before + "\n".join([BEGIN, *lines[first:last], END]) + after


def where() -> str:
    """What it was measured with, as `enlarger doctor` says it."""
    import torch

    from enlarger.cli.doctor import examine

    found = examine()
    device = found["devices"][-1]
    return (
        f"enlarger {found['enlarger']}, torch {torch.__version__} with {torch.get_num_threads()} "
        f"threads, {device['device']}: {device['name']}."
    )


if __name__ == "__main__":
    sys.exit(main())
