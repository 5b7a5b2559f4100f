"""The deployment examples: scripts are run, the rest is checked against what it would start.

Not checked here: that the Dockerfile builds and that Slurm, Kubernetes and Ray take their files.
"""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from foremoe.cli import command_parser
from foremoe.client import ControllerClient
from foremoe.rpc.credentials import Credentials
from tests.runtime.certificates import Authority, needs_openssl
from tests.runtime.daemon_process import free_port
from tests.runtime.nodes import Nodes

DEPLOY = Path(__file__).parents[2] / "deploy"
JOB = Path(__file__).with_name("job.py")


def environment(credentials: Credentials | None = None, **more: object) -> dict[str, str]:
    """Ours, with this Python's commands first, and the credentials as everybody finds them."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    given = {
        f"FOREMOE_{one.name.upper()}": getattr(credentials, one.name, None)
        for one in fields(Credentials)
    }
    return os.environ | {"PATH": path} | {k: str(v) for k, v in (given | more).items() if v}


def start(script: str, *arguments: str, env: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            [DEPLOY / script, *arguments], env=env, stdout=output, stderr=output
        )


def socket_in(folder: Path) -> str:
    folder.mkdir(mode=0o700)
    return str(folder / "s")


@needs_openssl
def test_serve_node_makes_a_leader_and_followers(tmp_path: Path) -> None:
    nodes = Nodes.create(tmp_path, Authority(tmp_path / "authority"))
    common = {"FOREMOE_LEADER": "127.0.0.1", "FOREMOE_PORT": nodes.port}
    started = []
    for number, credentials in enumerate((nodes.leader_credentials, nodes.follower_credentials)):
        env = environment(
            credentials, FOREMOE_NODE=str(number), FOREMOE_SOCKET=nodes.sockets[number], **common
        )
        log = tmp_path / f"log{number}"
        started.append(start("serve-node.sh", "--max-steps", "3", env=env, log=log))
    try:
        ids = set()
        for socket in nodes.sockets:
            with ControllerClient(socket, retry_seconds=60, credentials=nodes.job) as controller:
                ids.add((controller.status().daemon_id, controller.status().pid))
        assert [pid for _, pid in ids] == [started[0].pid]  # exec: signals reach the daemon
    finally:
        for process in started:
            process.terminate()
    assert [process.wait(timeout=60) for process in started] == [0, 0]


def test_torchrun_on_one_node(tmp_path: Path) -> None:
    env = environment(FOREMOE_SOCKET=socket_in(tmp_path / "run"), OMP_NUM_THREADS=1)
    log = tmp_path / "log"
    process = start(
        "torchrun.sh", "--standalone", "--nproc-per-node", "2", str(JOB), env=env, log=log
    )
    assert process.wait(timeout=110) == 0, log.read_text()
    assert log.read_text().count("of 2 sees all") == 2
    assert "stopped" in log.read_text()  # the daemon drained
    assert not Path(env["FOREMOE_SOCKET"]).exists()


@needs_openssl
def test_torchrun_on_two_nodes(tmp_path: Path) -> None:
    nodes = Nodes.create(tmp_path, Authority(tmp_path / "authority"))
    common = {"NODES": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    started = []
    for number, credentials in enumerate((nodes.leader_credentials, nodes.follower_credentials)):
        env = environment(
            credentials,
            NODE_RANK=str(number),
            FOREMOE_SOCKET=nodes.sockets[number],
            FOREMOE_PORT=nodes.port,
            OMP_NUM_THREADS=1,
            **common,
        )
        log = tmp_path / f"log{number}"
        started.append(start("torchrun.sh", "--nproc-per-node", "1", str(JOB), env=env, log=log))
    ended = [process.wait(timeout=110) for process in started]
    logs = [(tmp_path / f"log{number}").read_text() for number in range(2)]
    assert ended == [0, 0], "\n".join(logs)
    seen = re.findall(r"sees all by (\w+)", "".join(logs))
    assert (len(seen), len(set(seen))) == (2, 1)  # both ranks, and one leader
    assert "following 127.0.0.1" in logs[1]


@pytest.mark.parametrize(
    ("shell", "script"),
    [("sh", "serve-node.sh"), ("sh", "torchrun.sh"), ("bash", "slurm/train.sbatch")],
)
def test_scripts_parse(shell: str, script: str) -> None:
    subprocess.run([shell, "-n", DEPLOY / script], check=True)


def test_slurm_runs_one_script_a_node() -> None:
    text = (DEPLOY / "slurm" / "train.sbatch").read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(.+)$", text, re.M))
    assert (options["ntasks-per-node"], int(options["nodes"]) > 1) == ("1", True)
    assert (DEPLOY.parent / re.findall(r"exec (deploy/\S+)", text)[0]).exists()


def test_systemd_unit(tmp_path: Path) -> None:
    unit = (DEPLOY / "systemd" / "foremoe@.service").read_text()
    (command,) = re.findall(r"^ExecStart=(.+)$", unit, re.M)
    options = command_parser("serve").parse_args(shlex.split(command)[2:])
    directory = re.findall(r"^RuntimeDirectory=(.+)$", unit, re.M)[0]
    assert options.address == f"unix:/run/{directory}/runtime.sock"
    assert "RuntimeDirectoryMode=0700" in unit
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze to verify the unit")
    copy = tmp_path / "foremoe@.service"
    copy.write_text(unit.replace(shlex.split(command)[0], shutil.which("true") or "true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", copy], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_kubernetes_manifest() -> None:
    text = (DEPLOY / "kubernetes" / "job.yaml").read_text()
    service, job = yaml.safe_load_all(text)
    pod = job["spec"]["template"]["spec"]
    (daemon,), (trainer,) = pod["initContainers"], pod["containers"]
    assert daemon["restartPolicy"] == "Always"  # what makes it a sidecar
    command_parser("serve").parse_args(daemon["args"])
    assert set(variables(daemon)) >= {"FOREMOE_NODE", "FOREMOE_LEADER", "FOREMOE_TLS_CERT"}
    for name in ("FOREMOE_SOCKET", "FOREMOE_TOKEN_FILE"):
        assert variables(daemon)[name] == variables(trainer)[name]
    leader = variables(daemon)["FOREMOE_LEADER"]
    assert leader == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    ports = {port["name"]: port["containerPort"] for port in daemon["ports"]}
    assert str(ports["metrics"]) in daemon["args"]
    for probe in ("startupProbe", "livenessProbe"):
        assert daemon[probe]["httpGet"] == {"path": "/healthz", "port": "metrics"}
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in (daemon, trainer):
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    secrets = [volume["secret"] for volume in pod["volumes"] if "secret" in volume]
    assert [secret["defaultMode"] & 0o007 for secret in secrets] == [0, 0]


def variables(container: dict[str, Any]) -> dict[str, str | None]:
    return {each["name"]: each.get("value") for each in container["env"]}


def test_dockerfile_names_what_is_there() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    for source in re.findall(r"^COPY (?!--from)(\S+)", text, re.M):
        assert (DEPLOY.parent / source).exists(), source
    (entry,), (extra,) = (
        re.findall(rf"^{word} (\[.+\])$", text, re.M) for word in ("ENTRYPOINT", "CMD")
    )
    for source in re.findall(r"/source/(\S+\.txt)", text):
        assert (DEPLOY.parent / source).exists(), source
    command = [*yaml.safe_load(entry), *yaml.safe_load(extra)]
    assert command[:2] == ["foremoe", "serve"]
    command_parser("serve").parse_args(command[2:])
    assert re.search(r"^USER [1-9]\d*:", text, re.M)
    assert "NUMBA_CACHE_DIR=/cache" in text
    assert "/cache" in text.partition("FROM")[0]  # the documented run gives it a place


def test_ray_example_starts_what_there_is() -> None:
    tree = ast.parse((DEPLOY / "ray" / "node_daemons.py").read_text())
    words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    flags = {word for word in words if isinstance(word, str) and word.startswith("--")}
    known = command_parser("serve")._option_string_actions
    assert flags > {"--pdeathsig"}  # setpriv's
    assert flags - {"--pdeathsig"} <= known.keys()
