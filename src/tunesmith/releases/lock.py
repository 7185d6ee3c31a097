"""The lock of a release: what it was made of and with, as a CycloneDX 1.6 bill of materials (ECMA-424).

    lock.cdx.json   metadata.component     the adapter: run id, name
                    metadata.properties    tunesmith:python, :platform, :cpus, :threads, :device, :dtype, :distributions
                    components             the base (its digest as version), the dataset, every distribution that the run
                                           needed, with exact version, licence and purl
                    dependencies           who requires whom

It follows from the run's files alone, so that the same run gives the same lock wherever it is released. `here` compares it with
the machine that asks: that is information, not an error, since another version may well compute the same.
Specification: https://cyclonedx.org/docs/1.6/json/
"""

from __future__ import annotations

import platform
import uuid
from urllib.parse import quote

from tunesmith.store.files import sha256_json
from tunesmith.training.environment import distributions, installed

LOCK = "lock.cdx.json"
SHOWN = 5
"""Differences that a sentence names; the document has all."""


def lock(state: dict, environment: dict) -> dict:
    """The bill of materials of a run, from its run.json and environment.json.

    Runs of before `distributions` was kept get those that are installed now, and the lock says so.
    """
    known = environment.get("distributions")
    libraries = known if known is not None else distributions()
    ref = {d["name"]: f"pkg:pypi/{d['name']}@{quote(d['version'], safe='')}" for d in libraries}
    facts = {"python": environment["python"], "platform": environment["platform"], "cpus": environment["cpus"],
             "threads": state["threads"], "device": state["device"], "dtype": state["dtype"],
             "distributions": "as trained" if known is not None else "as released: the run did not keep them"}
    inputs = [{"type": "machine-learning-model", "bom-ref": "base", "name": state["base"]["ref"],
               "version": state["base"]["digest"]},
              {"type": "data", "bom-ref": "dataset", "name": state["dataset_id"]}]
    made = {
        "metadata": {
            "timestamp": state["created"],
            "component": {"type": "machine-learning-model", "bom-ref": "adapter", "name": state["name"],
                          "version": state["run_id"]},
            "properties": [{"name": f"tunesmith:{key}", "value": str(value)} for key, value in facts.items()],
        },
        "components": inputs + [_component(d, ref[d["name"]]) for d in libraries],
        "dependencies": [{"ref": "adapter", "dependsOn": ["base", "dataset", *(r for n, r in ref.items() if n == "tunesmith")]},
                         {"ref": "base", "dependsOn": []}, {"ref": "dataset", "dependsOn": []},
                         *({"ref": ref[d["name"]], "dependsOn": [ref[n] for n in d["requires"]]} for d in libraries)],
    }
    serial = uuid.uuid5(uuid.NAMESPACE_OID, sha256_json(made))
    return {"$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json", "bomFormat": "CycloneDX", "specVersion": "1.6",
            "serialNumber": f"urn:uuid:{serial}", "version": 1, **made}


def here(lock: dict) -> dict:
    """`{same, differs[{what, released, here}], message}`: this machine against the one that a lock tells of.

    `here` is None where something is not installed. Threads are not compared: a run sets its own.
    """
    facts = {p["name"].removeprefix("tunesmith:"): p["value"] for p in lock["metadata"]["properties"]}
    pairs = [("python", facts["python"], platform.python_version()), ("platform", facts["platform"], platform.platform())]
    pairs += [(c["name"], c["version"], installed(c["name"])) for c in lock["components"] if c["type"] == "library"]
    differs = [{"what": what, "released": then, "here": now} for what, then, now in pairs if then != now]
    named = ", ".join(f"{d['what']} {d['released']} (here {d['here'] or 'none'})" for d in differs[:SHOWN])
    more = f" and {len(differs) - SHOWN} more" if len(differs) > SHOWN else ""
    return {"same": not differs, "differs": differs,
            "message": f"this machine differs from the lock in {named}{more}" if differs else
            f"python, platform and {len(pairs) - 2} distributions here are those of the lock"}


def _component(found: dict, ref: str) -> dict:
    licence = found["licence"] or {}
    told = [{"expression": licence["expression"]}] if "expression" in licence else [{"license": licence}] if licence else []
    return {"type": "library", "bom-ref": ref, "name": found["name"], "version": found["version"], "purl": ref,
            **({"licenses": told} if told else {})}
