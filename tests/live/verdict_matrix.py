"""The confusion matrix of the verdict: verdict_matrix.py [--count N] [--only A|B] [--json FILE] [--write].

Each lab of verdict_labs.py is judged N times (20), every time from a window of its own, and every judgement is counted.
`--code` judges with another checkout, `--json` adds to the results in FILE, `--write` puts the table of all that is in
FILE into docs/verdict.md. It takes half an hour; CI runs the short form of it (test_verdict_labs.py).
"""

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from verdict_labs import HEALTHY, REPOSITORY, TROUBLES, Kind, Verdict, scene

BEGIN, END = "<!-- MATRIX: verdict_matrix.py --write -->", "<!-- END MATRIX -->"


def fits(kind: Kind, found: Verdict) -> bool:
    """The verdict is right, and nothing is blamed besides where nothing is wrong."""
    return (found["verdict"] or "") in kind.right and not (kind in HEALTHY and found["also"])


def run(kind: Kind, count: int, code: Path, verbose: bool = False) -> tuple[Counter[str], int]:
    said: Counter[str] = Counter()
    right = 0
    with scene(kind, code) as judge:
        for _ in range(count):
            found = judge()
            good = fits(kind, found)
            right += good
            said[" + ".join([found["verdict"] or "none yet", *found["also"]])] += 1
            if not good or verbose:
                print("   ", *(found.get(key) for key in ("verdict", "also", "headline", "reasons")))
                print("   ", {p["part"]: p["ns"] for p in found["parts"]}, flush=True)
    return said, right


def table(results: dict[str, dict[str, object]]) -> str:
    """A row for all labs that were judged alike; how often that was right stands where it was not always."""
    lines = ["| judged as | labs |", "|---|---|"]
    for title, kinds in (("a trouble", TROUBLES), ("healthy traffic", HEALTHY)):
        lines.append(f"| **{title}** | |")
        alike: dict[str, list[str]] = {}
        for kind in kinds:
            result = results.get(kind.name)
            if result is not None:
                said = ", ".join(f"{word} {n}" for word, n in result["said"].items())  # type: ignore[attr-defined]
                if result["right"] != result["count"]:
                    said += f": right {result['right']} of {result['count']}"
                alike.setdefault(said, []).append(kind.name)
        lines += [f"| {said} | {'<br>'.join(names)} |" for said, names in alike.items()]
    return "\n".join(lines)


def write(results: dict[str, dict[str, object]]) -> None:
    page = REPOSITORY / "docs" / "verdict.md"
    text = page.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    page.write_text(f"{before}{BEGIN}\n\n{table(results)}\n\n{END}{after}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--only", default="", help="labs whose name has this")
    parser.add_argument("--exact", help="the lab of this name")
    parser.add_argument("--code", type=Path, default=REPOSITORY)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    results = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    wrong = 0
    for kind in (*TROUBLES, *HEALTHY):
        if options.exact not in (None, kind.name) or not any(t in kind.name for t in options.only.split("|")):
            continue
        began = time.monotonic()
        said, right = run(kind, options.count, options.code, options.verbose)
        results[kind.name] = {"right": right, "count": options.count, "said": dict(said.most_common())}
        wrong += right * 20 < options.count * 19
        print(
            f"{kind.name}: {right} of {options.count}, {dict(said)}, {time.monotonic() - began:.0f} s",
            flush=True,
        )
        if options.json:
            options.json.write_text(json.dumps(results, indent=1))
    if options.write:
        write(results)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
