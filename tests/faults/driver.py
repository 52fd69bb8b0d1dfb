"""Runs commands in processes forked from this one, in which the libraries are loaded already.

Started with the shim in LD_PRELOAD; reads a job a line (JSON), or a list of jobs to run at the
same time, and answers each with a line.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import importlib.util
import json
import os
import signal
import socket
import sys
import time
import traceback

STAGES = (
    "choose_genes",
    "embed",
    "evaluate",
    "export",
    "prepare",
    "probe",
    "sample",
    "split",
    "summarise",
    "train",
)


# mounts, host name and PIDs
NEW_NAMESPACES = 0x20000 | 0x4000000 | 0x20000000
MS_REC, MS_PRIVATE = 0x4000, 0x40000
NOT_PERMITTED = 99


class State(ctypes.Structure):
    """As in shim.c."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("kind", "number", "calls", "when", "for_ever")),
        *((name, ctypes.c_int) for name in ("count", "fired")),
        ("folder", ctypes.c_char * 4096),
    ]


def load_libraries() -> None:
    """Import what commands import in the middle of their work."""
    import torch
    import torch.utils.tensorboard
    from stflow_graph_cli import main

    torch.set_num_threads(1)
    del main
    # a process for each job to try its inputs in, which are whole here
    importlib.import_module("stflow_graph.io.hdf5").comes_back = lambda path: True
    names = [f"stflow_graph.stages.{stage}" for stage in STAGES]
    names += ["stflow_graph.simulation.cohort", "stflow_graph.models.stflow_weights"]
    names += ["stflow_graph.preparation.gene_lists", "pyarrow.parquet", "anndata.io", "toy"]
    names += [name for name in ("spatialdata",) if importlib.util.find_spec(name)]
    for name in names:
        importlib.import_module(name)


def run(job: dict[str, object], state: State) -> None:
    """Run a command in this process, which ends with it.

    Objects are let go as at the end of any process, the modules of torch are not: that takes
    seconds.
    """
    log = os.open(str(job["log"]), os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o666)
    null = os.open(os.devnull, os.O_RDWR)
    for source, target in ((null, 0), (null, 1), (log, 2)):
        os.dup2(source, target)
    sys.argv = ["stflow-graph", *job["arguments"]]  # type: ignore[misc]
    from stflow_graph_cli.main import main

    for name, value in job["fault"].items():  # type: ignore[attr-defined]
        setattr(state, name, value)
    state.folder = str(job["folder"]).encode()
    code = 0
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    gc.collect()
    state.kind = 0  # the work is done
    atexit._run_exitfuncs()
    sys.stderr.flush()
    os._exit(code)


def start_in_container(job: dict[str, object], state: State) -> int:
    """Start a command as PID 1 of namespaces of its own; return the PID of who waits for it."""
    waiting = os.fork()
    if waiting:
        return waiting
    library = ctypes.CDLL(None, use_errno=True)
    if library.unshare(NEW_NAMESPACES):
        os._exit(NOT_PERMITTED)
    child = os.fork()
    if child == 0:
        library.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None)
        if library.mount(b"proc", b"/proc", b"proc", 0, None):
            os._exit(NOT_PERMITTED)
        socket.sethostname(str(job["host"]))
        run(job, state)
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def run_in_containers(jobs: list[dict[str, object]], state: State) -> list[int]:
    """Run commands at the same time, each in namespaces of its own; return their exit codes."""
    started = [start_in_container(job, state) for job in jobs]
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in started]


def serve() -> None:
    """Answer jobs until there are no more."""
    library = ctypes.CDLL(None)
    library.faults.restype = ctypes.POINTER(State)
    state = library.faults().contents
    load_libraries()
    gc.freeze()
    print("ready", flush=True)
    for line in sys.stdin:
        state.count = state.fired = state.kind = 0
        job, start = json.loads(line), time.perf_counter()
        if isinstance(job, list):
            print(json.dumps(run_in_containers(job, state)), flush=True)
            continue
        child = os.fork()
        if child == 0:
            run(job, state)
        if job["kill_after"] is not None:
            time.sleep(job["kill_after"])
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        state.kind = 0
        answer = {"code": os.waitstatus_to_exitcode(status), "count": state.count}
        answer |= {"fired": state.fired, "seconds": time.perf_counter() - start}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    serve()
