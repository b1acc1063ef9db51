"""As much of SLURM as one batch script needs, on one machine.

    python fake_slurm.py sbatch|srun|scontrol ARGUMENT...

The script runs for real, in allocations with a time limit, a signal before it, an epilog that wipes the node's disk, and
requeueing. A node is a name. The folder `$FAKE_SLURM` holds the state of jobs.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

STATE = Path(os.environ.get("FAKE_SLURM", "."))
JOB = "1234567"
KILL_WAIT_S = 5.0
OPTION = re.compile(r"--([a-z-]+)(?:=(.*))?")


def options_of(words):
    """Options as a dict, and what follows them."""
    found = {}
    for index, word in enumerate(words):
        match = OPTION.fullmatch(word)
        if match is None:
            return found, words[index:]
        found[match[1]] = match[2] if match[2] is not None else ""
    return found, []


def seconds(text):
    """Of HH:MM:SS."""
    hours, minutes, rest = (int(part) for part in text.split(":"))
    return 3600 * hours + 60 * minutes + rest


def sbatch(words):
    """Run a job to its end, as `sbatch --wait` does; returns the exit status of its last allocation."""
    given, (script, *arguments) = options_of(words)
    written = [
        line.removeprefix("#SBATCH ").strip() for line in Path(script).read_text().splitlines() if line.startswith("#SBATCH")
    ]
    options = options_of(written)[0] | given
    job = STATE / JOB
    job.mkdir(parents=True)
    copy = shutil.copy(script, job / "slurm_script")  # as SLURM does: a script cannot look beside itself
    exports = dict(pair.split("=", 1) for pair in options.get("export", "ALL").split(",") if "=" in pair)
    for restart in range(10):
        status = allocate(job, restart, ["bash", copy, *arguments], options, exports)
        (job / "history").open("a").write(f"{status}\n")
        if epilog := os.environ.get("FAKE_SLURM_EPILOG"):
            subprocess.run(epilog, shell=True, check=True)
        if not (job / "requeue").exists():
            return status
        (job / "requeue").unlink()
    raise RuntimeError("a job must end at last, but this one was requeued ten times")


def allocate(job, restart, command, options, exports):
    """One allocation: returns its script's exit status."""
    (job / "end").write_text(str(time.time() + seconds(options["time"])))
    warning, warn_before = re.fullmatch(r"B:([A-Z0-9]+)@(\d+)", options["signal"]).groups()
    facts = {
        "SLURM_JOB_ID": job.name,
        "SLURM_RESTART_COUNT": str(restart),
        "SLURM_JOB_NUM_NODES": options.get("nodes", "1"),
        "SLURM_CPUS_PER_TASK": options.get("cpus-per-task", "1"),
        "SLURM_SUBMIT_DIR": os.getcwd(),
        "SLURMD_NODENAME": "node1",
        "FAKE_ALLOCATION": f"{job}-{restart}",
    }
    with (job / "log").open("a") as log:
        script = subprocess.Popen(
            command, env=os.environ | exports | facts, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    (job / "allocation").write_text(json.dumps({"pid": script.pid, "tag": facts["FAKE_ALLOCATION"]}))
    is_warned = False
    while script.poll() is None:
        left = float((job / "end").read_text()) - time.time()
        if left < float(warn_before) and not is_warned:
            is_warned = True
            script.send_signal(getattr(signal, f"SIG{warning}"))
        if left < 0 or (job / "requeue").exists():  # both end a job, and it has KILL_WAIT_S to do so
            wait_s = time.monotonic() + KILL_WAIT_S
            script.terminate()
            while script.poll() is None and time.monotonic() < wait_s:
                time.sleep(0.1)
            break
        time.sleep(0.2)
    end_all(facts["FAKE_ALLOCATION"])
    return script.wait()


def end_all(tag):
    """Kill whatever is left of an allocation, as its cgroup would."""
    for process in processes_of(tag):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            pass


def processes_of(tag):
    """Every process of an allocation."""
    for process in psutil.process_iter():
        try:
            if process.environ().get("FAKE_ALLOCATION") == tag:
                yield process
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue


def srun(words):
    """Run a command once a task; ends them when it is ended."""
    options, command = options_of(words)
    tasks = [subprocess.Popen(command, start_new_session=True) for _ in range(int(options["ntasks"]))]

    def end(number, _):
        for task in tasks:
            task.send_signal(number)

    signal.signal(signal.SIGTERM, end)
    return max(task.wait() for task in tasks)


def scontrol(words):
    """`requeue JOB`, and `update JobId=JOB EndTime=now+SECONDS`, by which a job's end may come sooner."""
    if words[0] == "requeue":
        (STATE / words[1] / "requeue").touch()
    else:
        fields = dict(word.split("=") for word in words[1:])
        end = time.time() + float(fields["EndTime"].removeprefix("now+"))
        (STATE / fields["JobId"] / "end").write_text(str(end))
    return 0


if __name__ == "__main__":
    sys.exit({"sbatch": sbatch, "srun": srun, "scontrol": scontrol}[sys.argv[1]](sys.argv[2:]))
