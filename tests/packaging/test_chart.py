"""The chart renders with every choice, asks for no value that is not there, and lets its pod do little."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.packaging.charts import chart, read, render, templates

FOLDER = Path(__file__).resolve().parents[2] / "packaging" / "helm" / "consilium-server"
CHOICES: dict[str, dict[str, object]] = {
    "as it comes": {},
    "a digest": {"image": {"digest": "sha256:" + "0" * 64}},
    "within the cluster": {"service": {"type": "ClusterIP", "annotations": {"a": "b"}}},
    "known networks": {"service": {"loadBalancerSourceRanges": ["192.0.2.0/24"]}},
    "a storage class": {"storage": {"className": "fast"}},
    "no policy": {"networkPolicy": {"enabled": False}},
    "while the home is made": {"serving": False},
}


def values(choice: str) -> dict[str, object]:
    made = copy.deepcopy(read(FOLDER / "values.yaml"))
    for name, change in CHOICES[choice].items():
        part = made[name]
        if isinstance(part, dict) and isinstance(change, dict):
            assert change.keys() <= part.keys()
            part.update(change)
        else:
            made[name] = change
    return made


def dug(content: object, *path: str | int) -> object:
    for name in path:
        assert isinstance(content, (dict, list))
        content = content[name]  # type: ignore[index]
    return content


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_renders_to_one_valid_resource_a_template(choice: str) -> None:
    found = chart(FOLDER, values(choice))
    wanted = {"service.yaml": "Service", "statefulset.yaml": "StatefulSet", "networkpolicy.yaml": "NetworkPolicy"}
    if choice == "no policy":
        del wanted["networkpolicy.yaml"]
    assert {name: dug(content, "kind") for name, content in found.items()} == wanted
    assert {str(dug(content, "metadata", "name")) for content in found.values()} == {"study"}


def test_choices_show_in_what_is_rendered() -> None:
    pod = ("spec", "template", "spec", "containers", 0)
    image = {choice: dug(chart(FOLDER, values(choice))["statefulset.yaml"], *pod, "image") for choice in CHOICES}
    assert image["as it comes"] == "consilium-server:0.1.0"
    assert image["a digest"] == "consilium-server@sha256:" + "0" * 64
    making = dug(chart(FOLDER, values("while the home is made"))["statefulset.yaml"], *pod)
    assert isinstance(making, dict)
    assert "livenessProbe" not in making
    assert making["command"] == ["sleep", "infinity"]
    within = dug(chart(FOLDER, values("within the cluster"))["service.yaml"], "spec")
    assert isinstance(within, dict)
    assert "externalTrafficPolicy" not in within


def test_a_value_that_no_template_asks_for_is_not_there_and_the_other_way_round() -> None:
    asked = {
        path
        for template in [*templates(FOLDER), FOLDER / "templates" / "NOTES.txt"]
        for path in re.findall(r"\.Values((?:\.[A-Za-z]+)+)", template.read_text(encoding="utf-8"))
    }

    def leaves(content: object, name: str = "") -> set[str]:
        if not isinstance(content, dict) or name in asked:
            return {name}
        return {leaf for key, value in content.items() for leaf in leaves(value, f"{name}.{key}")}

    assert leaves(read(FOLDER / "values.yaml")) == asked


def test_the_pod_may_do_little_and_is_one() -> None:
    stateful = chart(FOLDER, values("as it comes"))["statefulset.yaml"]
    assert dug(stateful, "spec", "replicas") == 1
    assert dug(stateful, "spec", "volumeClaimTemplates", 0, "spec", "accessModes") == ["ReadWriteOncePod"]
    pod = dug(stateful, "spec", "template", "spec")
    assert dug(pod, "automountServiceAccountToken") is False
    assert dug(pod, "securityContext", "runAsNonRoot") is True
    context = dug(pod, "containers", 0, "securityContext")
    assert context == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    compile(str(dug(pod, "containers", 0, "livenessProbe", "exec", "command", 2)), "probe", "exec")


def test_the_passphrase_is_a_secret_that_is_not_in_the_chart() -> None:
    found = chart(FOLDER, values("as it comes"))
    assert "Secret" not in {dug(content, "kind") for content in found.values()}
    volumes = dug(found["statefulset.yaml"], "spec", "template", "spec", "volumes")
    assert isinstance(volumes, list)
    (secret,) = [volume["secret"] for volume in volumes if "secret" in volume]
    assert secret["secretName"] == "consilium-passphrase"
    assert secret["items"] == [{"key": "passphrase", "path": "consilium"}]


@pytest.mark.parametrize(
    "broken", ["{{ .Values.nothing }}", "{{ .Values.image }}", "{{ if .Values.serving }}", '{{ include "a" . }}']
)
def test_what_helm_would_refuse_or_we_do_not_understand_is_found(broken: str) -> None:
    with pytest.raises((KeyError, ValueError)):
        render(broken, {"Values": values("as it comes")})


@pytest.mark.skipif(shutil.which("helm") is None, reason="no helm here: the templates are rendered by our own reader")
@pytest.mark.parametrize("choice", CHOICES)
def test_helm_lints_it_and_renders_the_same(choice: str, tmp_path: Path) -> None:
    given = tmp_path / "values.yaml"
    given.write_text(yaml.safe_dump(values(choice)))
    subprocess.run(["helm", "lint", "--strict", FOLDER, "--values", given], check=True, capture_output=True)
    command = ["helm", "template", "study", str(FOLDER), "--values", str(given)]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    kinds = [content["kind"] for content in yaml.safe_load_all(shown) if content]
    assert sorted(kinds) == sorted(str(dug(content, "kind")) for content in chart(FOLDER, values(choice)).values())
