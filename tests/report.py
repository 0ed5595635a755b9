"""Runs the test programs that `tests/run` built; prints failures, tests over 5 s, skips, and counts.

The exit code is 1 when a test failed, or, with HEDGEROW_CI set, when one was skipped.
"""

import json
import os
import re
import subprocess
import sys
import time

SLOW_SECONDS = 5.0
LINE = re.compile(r"^test (?P<name>\S+)(?: - should panic)? \.\.\. (?P<result>ok|FAILED|ignored)(?:, (?P<why>.*?))?(?: <(?P<seconds>[0-9.]+)s>)?$")


def programs(log):
    """The test programs cargo built, in either workspace: (crate and target, path, folder to run in)."""
    found = []
    for build in ("build.json", "build-interop.json"):
        before = len(found)
        with open(os.path.join(log, build), encoding="utf-8") as lines:
            for line in lines:
                message = json.loads(line)
                if message.get("reason") != "compiler-artifact" or not message["profile"]["test"] or not message.get("executable"):
                    continue
                folder = os.path.dirname(message["manifest_path"])
                name = f"{os.path.relpath(folder)}: {message['target']['name']}"
                found.append((name, message["executable"], folder))
        if len(found) == before:
            sys.exit(f"{build} names no test program")
    return found


def main():
    log, long, words = sys.argv[1], sys.argv[2] == "yes", sys.argv[3:]
    arguments = ["-Z", "unstable-options", "--report-time", "--color", "never"] + (["--include-ignored"] if long else []) + words
    # The test harness gives times only with unstable options; this switches them on for it, not for the compiler.
    environment = dict(os.environ, RUSTC_BOOTSTRAP="1", RUST_BACKTRACE="1")
    passed, failed, slow, skipped, postponed = 0, [], [], [], 0
    begun = time.monotonic()
    for name, path, folder in programs(log):
        started = time.monotonic()
        run = subprocess.run([path, *arguments], cwd=folder, env=environment, text=True, errors="replace", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        count = 0
        for line in run.stdout.splitlines():
            match = LINE.match(line)
            if not match:
                continue
            test = f"{name}: {match['name']}"
            if match["result"] == "ok":
                count += 1
            elif match["result"] == "FAILED":
                failed.append(test)
            elif (match["why"] or "").startswith("long"):
                postponed += 1
            else:
                skipped.append(f"{test}: {match['why'] or 'ignored without a reason'}")
            if match["seconds"] and float(match["seconds"]) > SLOW_SECONDS:
                slow.append((float(match["seconds"]), test))
        passed += count
        if run.returncode != 0:
            print(run.stdout)
            if not any(f.startswith(f"{name}: ") for f in failed):
                failed.append(f"{name}: ended with {run.returncode}")
        print(f"{count:5} passed  {time.monotonic() - started:6.1f} s  {name}", flush=True)
    if not words:
        doc = subprocess.run(["cargo", "test", "--workspace", "--doc", "--quiet"], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        if doc.returncode != 0:
            print(doc.stdout)
            failed.append("examples in the documentation")
        passed += sum(int(n) for n in re.findall(r"(\d+) passed", doc.stdout))
    with open(os.environ["HEDGEROW_SKIP_LOG"], encoding="utf-8") as lines:
        skipped += [line.strip() for line in lines if line.strip()]

    for seconds, test in sorted(slow, reverse=True):
        print(f"slow: {seconds:.1f} s  {test}")
    for test in skipped:
        print(f"skipped: {test}")
    for test in failed:
        print(f"FAILED: {test}")
    print(f"== {passed} passed, {len(failed)} failed, {len(skipped)} skipped, {postponed} left for --long, {time.monotonic() - begun:.0f} s")
    if skipped and os.environ.get("HEDGEROW_CI"):
        print("a skipped test is a failure here (HEDGEROW_CI)")
        return 1
    if passed == 0:
        print("no test ran")
        return 1
    return 1 if failed else 0


sys.exit(main())
