"""Instructions: the cores without I/O execute no more instructions than at the last look, counted by callgrind.

Counts, not seconds: they are the same on a loaded machine. `tests/instructions.json` is the baseline; a case may exceed it by
the tolerance that stands in the file. After a change that is worth its cost: `python3 tests/scenario_instructions.py --rebase`
writes a new baseline, which is committed with the change and its reason. Another compiler or a processor without AVX2 gives
other counts (memchr and the checksums choose their code by it): then the counts are printed and nothing is compared.
"""

from harness import *

BASELINE = ROOT / "tests" / "instructions.json"
TIMES = 200


def counter():
    """The program that does the work: built with the release build of the workspace."""
    path = Path(os.environ.get("RINGMAIL_CORES_BIN") or ROOT / "target" / "release" / "ringmail-cores")
    if not path.exists():
        raise Skip(f"no program at {path}: run `cargo build --release --workspace` first")
    return path


def surroundings():
    """What the counts depend on besides the code."""
    flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    return {"compiler": run(["rustc", "--version"]).stdout.split()[1], "machine": os.uname().machine,
            "avx2": "avx2" in flags.split()}


def instructions(box, program, case, times):
    """Instructions of one run of the program."""
    done = run(["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", program, case, times], timeout=120,
               cwd=box.dir)
    match = re.search(r"Collected\s*:\s*([\d,]+)", done.stderr)
    check(match, f"no count in what callgrind says:\n{done.stderr[-1000:]}")
    return int(match[1].replace(",", ""))


def count_all(box):
    """Instructions of each case, once done: the difference of two runs, so that starting up is not counted."""
    need("valgrind", "rustc")
    program = counter()
    cases = run([program]).stdout.split()
    return {case: round((instructions(box, program, case, TIMES) - instructions(box, program, case, 0)) / TIMES)
            for case in cases}


def no_core_costs_more(box):
    """no case executes more instructions than its baseline allows"""
    counts = count_all(box)
    if "--rebase" in sys.argv:
        tolerance = json.loads(BASELINE.read_text())["tolerance"] if BASELINE.exists() else 0.05
        BASELINE.write_text(json.dumps({"tolerance": tolerance, "surroundings": surroundings(), "instructions": counts},
                                       indent=1) + "\n")
        print(f"  note: new baseline in {BASELINE}", flush=True)
        return
    baseline = json.loads(BASELINE.read_text())
    known = baseline["instructions"]
    for case, count in counts.items():
        change = f"{100 * count / known[case] - 100:+.1f}%" if case in known else "new"
        print(f"    {case}: {count:,} ({change})", flush=True)
    if surroundings() != baseline["surroundings"]:
        raise Skip(f"counts of other surroundings: {baseline['surroundings']}; here {surroundings()}")
    check_equal(sorted(counts), sorted(known), "cases (a new one needs --rebase)")
    worse = {case: f"{count:,} instead of {known[case]:,}" for case, count in counts.items()
             if count > known[case] * (1 + baseline["tolerance"])}
    check(not worse, f"cases that execute more instructions: {worse}")


main(no_core_costs_more)
