"""Compiling for a slice that isn't there: `launch.aot_compile`, and what `eval.hlo` counts in HLO text."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from tml_jax.perf import hlo
from tml_jax.train.config import load_experiment

ROOT = pathlib.Path(__file__).parents[2]

MODULE = """HloModule jit_f, entry_computation_layout={(f32[8,128]{1,0})->f32[8,128]{1,0}}

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%compare (p: s32[]) -> pred[] {
  %p = s32[] parameter(0)
  %end = s32[]{:T(128)} constant(7)
  ROOT %lt = pred[]{:T(512)} compare(%p, %end), direction=LT
}

%condition (c: (s32[], f32[8,128])) -> pred[] {
  %c = (s32[], f32[8,128]{1,0:T(8,128)}) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  ROOT %fused = pred[] fusion(%i), kind=kLoop, calls=%compare
}

%body (d: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %d = (s32[], f32[8,128]{1,0:T(8,128)}) parameter(0)
  %j = s32[] get-tuple-element(%d), index=0
  %x = f32[8,128]{1,0:T(8,128)} get-tuple-element(%d), index=1
  %reduced = f32[8,128]{1,0:T(8,128)} all-reduce(%x), replica_groups={{0,1},{2,3}}, to_apply=%sum
  %kernel.3 = f32[8,128]{1,0:T(8,128)} custom-call(%reduced), custom_call_target="tpu_custom_call"
  ROOT %next = (s32[], f32[8,128]{1,0:T(8,128)}) tuple(%j, %kernel.3)
}

%open (o: (s32[], s32[])) -> pred[] {
  %o = (s32[], s32[]) parameter(0)
  %k = s32[] get-tuple-element(%o), index=0
  %n = s32[] get-tuple-element(%o), index=1
  ROOT %more = pred[] compare(%k, %n), direction=LT
}

%step (s: (s32[], s32[])) -> (s32[], s32[]) {
  ROOT %s = (s32[], s32[]) parameter(0)
}

ENTRY %main (arg: f32[8,128]) -> f32[8,128] {
  %arg = f32[8,128]{1,0:T(8,128)} parameter(0)
  %zero = s32[] constant(0)
  %gathered = (bf16[4,128]{1,0}, bf16[16,128]{1,0:T(8,128)(2,1)}) all-gather-start(%arg), replica_groups=[1,4]<=[4]
  %init = (s32[], f32[8,128]{1,0:T(8,128)}) tuple(%zero, %arg)
  %loop = (s32[], f32[8,128]{1,0:T(8,128)}) while(%init), condition=%condition, body=%body
  %bounds = (s32[], s32[]) tuple(%zero, %zero)
  %spin = (s32[], s32[]) while(%bounds), condition=%open, body=%step
  ROOT %out = f32[8,128]{1,0:T(8,128)} get-tuple-element(%loop), index=1
}
"""


def test_a_loops_collectives_count_as_often_as_it_turns():
    program = hlo.analyse(MODULE)
    assert program.collectives == (
        hlo.Collective("all-reduce", "2 x 2: 0,1", 7, 7 * 8 * 128 * 4),
        hlo.Collective("all-gather", "1 x 4: 0,1,2,3", 1, 16 * 128 * 2),
    )
    assert program.kernels == {"kernel": 7}
    assert program.open_loops == 1


@pytest.mark.parametrize(
    ("printed", "groups"),
    [
        ("replica_groups=[4,2]<=[2,4]T(1,0)", "4 x 2: 0,4"),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", "2 x 4: 0,1,2,3"),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", "2 x 4: 0,2,4,6"),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}", "2 x 4: 0,1,4,5"),
        ("source_target_pairs={{0,1},{1,0}}", "2 pairs"),
    ],
)
def test_device_groups_read_alike_however_they_are_printed(printed, groups):
    program = hlo.analyse(MODULE.replace("replica_groups={{0,1},{2,3}}", printed))
    assert program.collectives[0].groups == groups


def test_known_trip_counts_are_believed():
    line = "condition=%condition, body=%body"
    known = MODULE.replace(line, line + ', backend_config={"known_trip_count":{"n":"3"}}')
    assert hlo.analyse(known).kernels == {"kernel": 3}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("f32[8,128]{1,0:T(8,128)}", 4096),
        ("(bf16[3]{0}, pred[2,2])", 10),
        ("f8e4m3fn[7]", 7),
        ("u4[3]", 2),
        ("s64[]", 8),
    ],
)
def test_bytes_of_a_type(text, size):
    assert hlo.num_bytes(text) == size


def test_what_is_no_hlo_is_refused():
    with pytest.raises(ValueError, match="no HLO module"):
        hlo.analyse("hello")


def compile_for(*args):
    command = [sys.executable, "-m", "launch.aot_compile", *args]
    return subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=1800)


@pytest.mark.tpu_compile
@pytest.mark.parametrize("program", ["micro_turn", "train_step"])
def test_tiny_programs_compile_for_a_slice(program, tmp_path):
    done = compile_for(
        "--config=tests/launch/experiment_tpu.py",
        "--topology=v5p:2x2x1",
        f"--program={program}",
        "--mesh=1,1,2,2",
        f"--sessions={16 if program == 'train_step' else 8}",
        f"--json={tmp_path / 'r.json'}",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["device"].startswith("TPU v5") and report["peak"] < 2**30
    assert "GiB" in done.stdout and "all-reduce" in {c["kind"] for c in report["collectives"]}
    # Our kernels, in every layer: 7 of attention, 6 of experts.
    kernels = "\n".join(f"{name} {runs}" for name, runs in report["kernels"].items())
    attention, experts = {
        "micro_turn": ("streaming_attention", "expert_gemv"),
        "train_step": ("prefill_attention", "grouped_matmul"),
    }[program]
    for name, least in ((attention, 7), (experts, 6)):
        assert sum(runs for kernel, runs in report["kernels"].items() if name in kernel) >= least, kernels


@pytest.mark.tpu_compile
def test_int8_weights_are_read_as_int8(tmp_path):
    """Nothing of the shape of a device's experts is made of them, not even of one layer.

    Of four sessions: the rows of eight are padded to as many as an expert has columns on a device.
    """
    common = ("--config=tests/launch/experiment_tpu.py", "--topology=v5p:2x2x1", "--mesh=1,1,2,2", "--sessions=4")
    done = compile_for(*common, "--weights=int8", f"--json={tmp_path / 'r.json'}", f"--hlo={tmp_path / 'hlo'}")
    assert done.returncode == 0, done.stderr[-2000:]
    text = load_experiment("tests/launch/experiment_tpu.py").model.text
    d, f = text.hidden_size, text.moe_intermediate_size // 2
    results = [operation.type for found in hlo.parse((tmp_path / "hlo").read_text())[0].values() for operation in found]
    experts = [result for result in results if re.match(rf"\w+\[[\d,]*\b({d},{f}|{f},{d})\]", result)]
    assert any(result.startswith("s8") for result in experts)
    assert not [result for result in experts if result.startswith(("bf16", "f32"))]
    report = json.loads((tmp_path / "r.json").read_text())
    assert sum(runs for kernel, runs in report["kernels"].items() if "expert_gemv" in kernel) >= 6


@pytest.mark.tpu_compile
@pytest.mark.slow
def test_the_published_size_fits_its_slice(tmp_path):
    done = compile_for("--topology=v5p:2x4x4", "--sessions=32", f"--json={tmp_path / 'r.json'}")
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["parameters"] > 263e9 and report["peak"] < 95 * 2**30
    assert report["arguments"] > 2 * 263e9 / 32


@pytest.mark.tpu_compile
@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--topology=v5p:9x9x9x9",), "knows no slice"),
        (("--topology=v5p:2x2x1", "--mesh=3,1,1,1"), "whose product is the 4 devices"),
        (("--program=train_step", "--weights=int8"), "int8 weights can't be trained"),
        (("--config=configs/no_such.py",), "There is no config"),
    ],
)
def test_mistakes_are_one_sentence(args, words):
    done = compile_for(*args)
    assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr


WITHOUT_LIBTPU = """
import importlib.util, runpy, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *args: None if name == "libtpu" else find(name, *args)
sys.argv = ["aot_compile"]
runpy.run_module("launch.aot_compile", run_name="__main__")
"""


def test_without_the_compiler_it_says_what_to_install():
    done = subprocess.run([sys.executable, "-c", WITHOUT_LIBTPU], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "libtpu" in done.stderr and "tml_jax[tpu]" in done.stderr
