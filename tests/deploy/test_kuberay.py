"""The manifests are what Kubernetes and KubeRay take, to the last field; nothing unknown, nothing secret, no root."""

import functools
import importlib.metadata
import importlib.resources
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from referencing import Registry, Resource

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kuberay"
KUBERNETES = "1.34"


def documents(*files):
    return [document for file in files for document in yaml.safe_load_all(file.read_text())]


FILES = [file for file in sorted(FOLDER.glob("*.yaml")) if file.name != "secrets.yaml"]  # the user's own
OBJECTS = [item for item in documents(*FILES) if item["kind"] != "Kustomization"]
RAY_OBJECTS = [item for item in OBJECTS if item["apiVersion"].startswith("ray.io/")]


def name_of(item):
    return f"{item['kind']}-{item['metadata']['name']}"


def parts(value):
    """Every mapping in a document."""
    if isinstance(value, dict):
        yield value
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from parts(child)


def pod_specs(item):
    return [part for part in parts(item) if "containers" in part]


@functools.cache
def ray_registry():
    """Our schema of KubeRay's objects, and Kubernetes' strict one that it refers to."""
    schemas = importlib.resources.files("kubernetes_validate") / "kubernetes-json-schema" / f"v{KUBERNETES}.0-local-strict"
    theirs = Resource.from_contents(json.loads((schemas / "_definitions.json").read_text()))
    ours = Resource.from_contents(json.loads((Path(__file__).parent / "schemas" / "kuberay.json").read_text()))
    return theirs @ Registry().with_resource("kuberay.json", ours)


def check_ray(item):
    schema = {"$ref": f"kuberay.json#/$defs/{item['kind']}"}
    jsonschema.Draft202012Validator(schema, registry=ray_registry()).validate(item)


@pytest.mark.parametrize("item", RAY_OBJECTS, ids=name_of)
def test_kuberay_takes_its_objects(item):
    check_ray(item)


@pytest.mark.parametrize("item", [item for item in OBJECTS if item not in RAY_OBJECTS], ids=name_of)
def test_kubernetes_takes_the_others(item):
    kubernetes_validate.validate(item, KUBERNETES, strict=True)


def test_an_unknown_field_is_found_in_ray_s_part_and_in_a_pod_s():
    for spoil in (
        lambda spec: spec.update(enableAutoscaling=True),
        lambda spec: spec["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
        lambda spec: spec["workerGroupSpecs"][0].pop("maxReplicas"),
        lambda spec: spec["workerGroupSpecs"][0]["template"]["spec"]["containers"][0].update(volumeMount=[]),
    ):
        cluster = json.loads(json.dumps(next(item for item in RAY_OBJECTS if item["kind"] == "RayCluster")))
        spoil(cluster["spec"])
        with pytest.raises(jsonschema.ValidationError):
            check_ray(cluster)


@pytest.mark.skipif(not shutil.which("kubectl"), reason="needs kubectl")
def test_one_command_applies_it_all(tmp_path):
    folder = shutil.copytree(FOLDER, tmp_path / "kuberay")
    shutil.copy(folder / "secrets.example.yaml", folder / "secrets.yaml")
    result = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=True)
    made = list(yaml.safe_load_all(result.stdout))
    listed = {name_of(item) for item in OBJECTS} - {name_of(item) for item in documents(FOLDER / "rayjob.yaml")}
    assert {name_of(item) for item in made} == listed
    for item in made:
        if item["kind"] == "RayCluster":
            check_ray(item)
        else:
            kubernetes_validate.validate(item, KUBERNETES, strict=True)
        for spec in pod_specs(item):
            assert not any(container["image"] == "narrow-study" for container in spec["containers"]), "has no tag"


def test_every_file_is_applied_but_the_study_s():
    listed = set(yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"])
    there = {file.name for file in FILES} - {"kustomization.yaml", "secrets.example.yaml", "rayjob.yaml"}
    assert listed == there | {"secrets.yaml"}


def test_secrets_have_no_values():
    for item in OBJECTS:
        if item["kind"] == "Secret":
            assert not any(item["stringData"].values())


@pytest.mark.parametrize("item", [item for item in OBJECTS if pod_specs(item)], ids=name_of)
def test_pods_are_what_the_restricted_standard_takes(item):
    for spec in pod_specs(item):
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
            assert container["resources"]["limits"]["memory"]
            assert not container["image"].endswith(":latest")


def test_what_pods_refer_to_is_there():
    names = {kind: {i["metadata"]["name"] for i in OBJECTS if i["kind"] == kind} for kind in {i["kind"] for i in OBJECTS}}
    names["Secret"] |= names["RayCluster"]  # KubeRay makes one of the cluster's name, with its token
    keys = {item["metadata"]["name"]: set(item["stringData"]) for item in OBJECTS if item["kind"] == "Secret"}
    for part in parts(OBJECTS):
        for field, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret"), ("configMap", "ConfigMap")):
            if field in part:
                assert part[field]["name"] in names[kind]
        if "secretKeyRef" in part:
            assert part["secretKeyRef"]["key"] in keys.get(part["secretKeyRef"]["name"], {"auth_token"})
        if "persistentVolumeClaim" in part:
            assert part["persistentVolumeClaim"]["claimName"] in names["PersistentVolumeClaim"]
    for spec in pod_specs(OBJECTS):
        for container in spec["containers"]:
            mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
            volumes = {volume["name"] for volume in spec.get("volumes", [])} | {"data"}  # a StatefulSet's claim
            assert mounted <= volumes


def test_workers_cannot_talk_to_a_database():
    for item in RAY_OBJECTS:
        spec = item["spec"].get("rayClusterSpec", item["spec"])
        text = json.dumps(spec["workerGroupSpecs"])
        assert "postgres" not in text
        assert "driver-settings" not in text
        assert "driver-settings" in json.dumps(spec["headGroupSpec"])


def test_ray_is_the_one_that_is_installed_and_the_image_is_of_this_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for item in RAY_OBJECTS:
        assert item["spec"].get("rayClusterSpec", item["spec"])["rayVersion"] == importlib.metadata.version("ray")
    tags = re.findall(r"narrow-study:([\w.]+)", "".join(file.read_text() for file in FILES))
    assert {*tags, yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["images"][0]["newTag"]} == {version}


def test_the_study_s_entrypoint_is_a_command_that_there_is():
    from typer.testing import CliRunner

    from study.cli import app

    (job,) = (item for item in RAY_OBJECTS if item["kind"] == "RayJob")
    words = re.search(r"study (launch [^|]+)", job["spec"]["entrypoint"])[1].split()
    result = CliRunner().invoke(app, [*words, "--help"])
    assert result.exit_code == 0
    assert words[-2:] == ["--address", "auto"]
