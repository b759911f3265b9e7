"""Looks at a run by MLflow's client alone: finds it, loads its tables, and asks its logged model about a clip.

    python tools/mlflow_client.py sqlite:///runs/mlflow.db --where "params.seed = '0'" --clip clip.mp4

Nothing of lightning_mmrl is imported here; MLflow itself runs the code of the logged model, which needs this package.
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS

KIND = "mlflow.experimentKind"
ORIGIN = ("mlflow.user", "mlflow.source.name", "mlflow.source.git.commit")


def find(client: MlflowClient, experiment: str, where: str = "") -> list[Run]:
    """The runs of curricula, newest first, for which a filter holds, such as `` metrics.`headline/test` > 0.5 ``."""
    found = client.get_experiment_by_name(experiment)
    if found is None:
        raise SystemExit(f"there is no experiment {experiment!r}")
    parents = "tags.mmrl.curriculum != ''"
    query = f"{parents} and {where}" if where else parents
    return list(client.search_runs([found.experiment_id], query, order_by=["attributes.start_time DESC"]))


def tables(client: MlflowClient, run: Run) -> dict[str, Any]:
    """The tables of a run as data frames; `load_table` looks in the tracking store that is set (`set_tracking_uri`)."""
    listed = json.loads(run.data.tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]"))
    names = [each["path"] for each in listed if each["type"] == "table"]
    return {name: client.load_table(run.info.experiment_id, name, [run.info.run_id]) for name in names}


def models(client: MlflowClient, run: Run) -> dict[str, str]:
    """Maps each trained stage of a run to the address of its logged model; stages in the order of their models."""
    linked = [client.get_logged_model(each.model_id) for each in run.outputs.model_outputs] if run.outputs else []
    return {each.name: f"models:/{each.model_id}" for each in sorted(linked, key=lambda each: each.creation_timestamp)}


def ask(model_uri: str, clip: str, question: str | None = None) -> dict[str, str]:
    """Loads a logged model of the store that is set, and asks it about a clip: answer, reasoning, whole text."""
    row = {"file": clip} if question is None else {"file": clip, "question": question}
    (answer,) = mlflow.pyfunc.load_model(model_uri).predict([row])
    return answer


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints what there is of the newest run that is found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tracking_uri", help="sqlite:///FILE or http(s)://HOST")
    parser.add_argument("--experiment", default="lightning_mmrl")
    parser.add_argument("--where", default="", help="a filter of MLflow's search")
    parser.add_argument("--clip", help="a file to ask the model of the last stage about")
    parser.add_argument("--question")
    options = parser.parse_args(arguments)
    mlflow.set_tracking_uri(options.tracking_uri)
    client = MlflowClient()
    found = find(client, options.experiment, options.where)
    if not found:
        raise SystemExit("no run is found")
    run = found[0]
    print(f"{len(found)} runs found; the newest is {run.info.run_name} ({run.info.run_id}), {run.info.status}")
    for name in ORIGIN:
        print(f"  {name}: {run.data.tags.get(name, '-')}")
    for name, value in sorted(run.data.metrics.items()):
        if name.startswith("headline/"):
            print(f"  {name}: {value:.4f}")
    for name, table in tables(client, run).items():
        print(f"  {name}: {len(table)} rows of {', '.join(map(str, table.columns))}")
    named = models(client, run)
    print(f"  models: {', '.join(f'{stage} {uri}' for stage, uri in named.items()) or '-'}")
    if options.clip and named:
        for key, text in ask(list(named.values())[-1], options.clip, options.question).items():
            print(f"  {key}: {text}")


if __name__ == "__main__":
    main()
