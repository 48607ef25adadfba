"""Recipes for clusters: what can be checked of them without one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import pretrain
from core_mri.config import save_config
from tests.pretrain.kill_runs import RunFolder, finish, start

RECIPES = Path(pretrain.__file__).parent / "recipes"
CONSTRAINTS = Path(pretrain.__file__).parent.parent / "constraints.txt"
SRUN = """#!/bin/bash
# Every node is this machine.
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = """#!/bin/bash
case $1 in
show) echo node-a; echo node-b ;;
requeue) echo "$2" >> "$(dirname "$0")/requeued" ;;
esac
"""


class TestKubeRay:
    """The whole manifest was held against the schema of RayJob in KubeRay's repository (August
    2026); here is what such a schema does not say."""

    @pytest.fixture
    def documents(self):
        claim, job = yaml.safe_load_all((RECIPES / "kuberay.yaml").read_text())
        return claim, job

    def test_kinds(self, documents):
        assert [(d["apiVersion"], d["kind"]) for d in documents] == [
            ("v1", "PersistentVolumeClaim"),
            ("ray.io/v1", "RayJob"),
        ]
        assert set(documents[1]["spec"]) <= {
            *("entrypoint", "backoffLimit", "shutdownAfterJobFinishes"),
            *("ttlSecondsAfterFinished", "rayClusterSpec"),
        }

    def test_ray_is_the_tested_one_and_has_tokens(self, documents):
        cluster = documents[1]["spec"]["rayClusterSpec"]
        assert f"\nray=={cluster['rayVersion']} ;" in CONSTRAINTS.read_text()
        assert cluster["authOptions"] == {"mode": "token"}

    def test_workers_fill_the_gpus(self, documents):
        spec = documents[1]["spec"]
        words = spec["entrypoint"].split()
        (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
        assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]
        (container,) = group["template"]["spec"]["containers"]
        gpus = int(container["resources"]["limits"]["nvidia.com/gpu"])
        assert int(words[words.index("--num-workers") + 1]) == group["replicas"] * gpus
        assert words[words.index("--ray") + 1] == "auto"
        assert words[:3] == ["core-mri", "pretrain", "run"]

    def test_all_pods_share_the_storage_of_the_run(self, documents):
        claim, job = documents
        assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
        words = job["spec"]["entrypoint"].split()
        cluster = job["spec"]["rayClusterSpec"]
        images = set()
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            pod = group["template"]["spec"]
            (container,) = pod["containers"]
            images.add(container["image"])
            assert container["resources"]["requests"] == container["resources"]["limits"]
            mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
            volumes = {v["name"]: v for v in pod["volumes"]}
            assert set(mounts) == set(volumes)
            name = volumes["shared"]["persistentVolumeClaim"]["claimName"]
            assert name == claim["metadata"]["name"]
            for option in ("--registry", "--out"):
                assert words[words.index(option) + 1].startswith(mounts["shared"])
        assert images == {"REGISTRY/core-mri:TAG"}


class TestSlurm:
    @pytest.mark.parametrize("name", ["slurm_ray.sh", "slurm_torchrun.sh"])
    def test_syntax(self, name):
        subprocess.run(["bash", "-n", str(RECIPES / name)], check=True)

    @pytest.mark.ray
    @pytest.mark.slow
    @pytest.mark.timeout(900)
    def test_two_nodes_a_signal_and_the_queue(self, tiny, registry, tmp_path):
        """Slurm is played by scripts that start both nodes on this machine; Ray is real."""
        config = tiny(registry=str(registry), steps=30, batch_size=16, checkpoint_every=5)
        save_config(config, tmp_path / "config.yaml")
        job = Job(tmp_path, "slurm_ray.sh", WORKERS="3", SLURM_CPUS_PER_TASK="2")
        run = RunFolder(tmp_path / "run")
        words = (str(tmp_path / "config.yaml"), "--out", str(run.out))
        process = job.start(*words)
        run.wait_for(lambda: len(run.lines()) >= 12)
        workers = run.pids().values()
        nodes = {parent(pid) for pid in workers}
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 130
        assert len(workers) == 3
        assert len(nodes) == 2
        assert job.requeued() == ["4711"]
        assert not any(Path(f"/proc/{pid}").exists() for pid in nodes)
        assert job.start(*words).wait(timeout=400) == 0
        alone = RunFolder(tmp_path / "alone")
        finish(start(tmp_path / "config.yaml", alone.out), alone.out)
        losses = [[line["loss"] for line in found.lines()] for found in (run, alone)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)

    @pytest.mark.slow
    @pytest.mark.timeout(600)
    def test_one_node_a_signal_and_the_queue(self, tiny, registry, tmp_path):
        config = tiny(registry=str(registry), steps=60, batch_size=16, checkpoint_every=50)
        save_config(config, tmp_path / "config.yaml")
        job = Job(tmp_path, "slurm_torchrun.sh", WORKERS="2")
        run = RunFolder(tmp_path / "run")
        words = (str(tmp_path / "config.yaml"), "--out", str(run.out))
        process = job.start(*words)
        run.wait_for(lambda: len(run.lines()) >= 5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 130
        assert job.requeued() == ["4711"]
        saved = {path.name for path in (run.out / "checkpoints").glob("step_*")}
        assert len(saved) == 1  # before the 50 steps: at the signal
        assert job.start(*words).wait(timeout=400) == 0
        assert len(run.lines()) == 60


def parent(pid: int) -> int:
    """The process that has started another one; of a worker of Ray that is its node."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


class Job:
    """A job script with a Slurm that consists of this machine."""

    def __init__(self, folder: Path, script: str, **variables: str) -> None:
        self.script = RECIPES / script
        self.folder = folder / "bin"
        self.folder.mkdir()
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
            (self.folder / name).write_text(text)
            (self.folder / name).chmod(0o755)
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        path = os.pathsep.join(map(str, (self.folder, Path(sys.executable).parent)))
        self.variables = os.environ | {
            "PATH": f"{path}{os.pathsep}{os.environ['PATH']}",
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NODELIST": "node-[a-b]",
            "SLURM_JOB_NUM_NODES": "2",
            "RAY_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            **variables,
        }

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["bash", str(self.script), *words], env=self.variables)

    def requeued(self) -> list[str]:
        return (self.folder / "requeued").read_text().split()
