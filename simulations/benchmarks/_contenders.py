"""One task, trained by every engine that is compared: `python -m simulations.benchmarks._contenders ENGINE ...`.

The task is small, so that an engine's own work shows: a network with one hidden layer, a few steps of SGD at each
client, the mean of the clients' weights, nothing private. A line on stdout marks the end of each round; whoever started
this process reads clocks there. Engines import what they need themselves, since their own start is part of what is
measured.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from flwr.app import Context, Message, RecordDict
    from flwr.clientapp import ClientApp

    from common.link.inprocess import InProcessGrid

Floats = NDArray[np.float32]
ROUND = "round"
_RATE = 0.1


@dataclass(frozen=True, slots=True)
class Task:
    """How large it is. Each step takes the next ``batch`` of a client's examples."""

    clients: int = 100
    examples: int = 100
    width: int = 784
    hidden: int = 64
    labels: int = 10
    steps: int = 5
    rounds: int = 6

    @property
    def batch(self) -> int:
        """Examples of one step."""
        return self.examples // self.steps

    @property
    def parameters(self) -> int:
        """Length of the vector."""
        return (self.width + 1) * self.hidden + (self.hidden + 1) * self.labels

    def data(self, client: int) -> tuple[Tensor, Tensor]:
        """Return a client's invented features and labels."""
        dice = torch.Generator().manual_seed(client)
        features = torch.randn(self.examples, self.width, generator=dice)
        return features, torch.randint(self.labels, (self.examples,), generator=dice)


def network(task: Task) -> nn.Sequential:
    """Return the model, at the same start in every process."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(task.width, task.hidden), nn.ReLU(), nn.Linear(task.hidden, task.labels))


def start_of(task: Task) -> Floats:
    """Return the vector that training starts from."""
    return _flat(network(task))


def train(model: nn.Module, task: Task, start: Floats, data: tuple[Tensor, Tensor]) -> Floats:
    """Return a client's weights after its steps, (parameters,): the plain loop that people write."""
    nn.utils.vector_to_parameters(torch.from_numpy(start.copy()), model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=_RATE)
    for features, targets in zip(*(torch.split(part, task.batch) for part in data), strict=True):
        optimizer.zero_grad()
        functional.cross_entropy(model(features), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return _flat(model)


def train_stacked(task: Task, starts: Tensor, features: Tensor, targets: Tensor) -> Tensor:
    """Return (clients, parameters): several clients' weights after their steps, by batched products."""
    shapes = [parameter.shape for parameter in _network(task).parameters()]
    parts = torch.split(starts, [shape.numel() for shape in shapes], dim=1)
    leaves = [
        part.reshape(len(starts), *shape).clone().requires_grad_() for part, shape in zip(parts, shapes, strict=True)
    ]
    first, first_bias, second, second_bias = leaves
    for step in range(task.steps):
        rows = slice(step * task.batch, (step + 1) * task.batch)
        hidden = torch.baddbmm(first_bias[:, None, :], features[:, rows], first.mT).relu()
        logits = torch.baddbmm(second_bias[:, None, :], hidden, second.mT)
        losses = functional.cross_entropy(logits.flatten(0, 1), targets[:, rows].flatten(), reduction="sum")
        found = torch.autograd.grad(losses / task.batch, leaves)
        with torch.no_grad():
            torch._foreach_add_(leaves, found, alpha=-_RATE)
    return torch.cat([leaf.detach().flatten(1) for leaf in leaves], dim=1)


def loop(task: Task, done: Callable[[], None]) -> Floats:
    """One client after the other, in plain PyTorch."""
    model, data = network(task), [task.data(client) for client in range(task.clients)]
    vector = start_of(task)
    for _ in range(task.rounds):
        total = np.zeros(task.parameters)
        for own in data:
            total += train(model, task, vector, own)
        vector = (total / task.clients).astype(np.float32)
        done()
    return vector


def inline(task: Task, done: Callable[[], None]) -> Floats:
    """Our grid in this process: a Flower ClientApp for each client, every update a Flower message."""
    from common.link.inprocess import InProcessGrid

    model, data = network(task), [task.data(client) for client in range(task.clients)]
    return _over_grid(
        task, done, lambda client, start: train(model, task, start, data[client]), lambda apps: InProcessGrid(apps)
    )


def stacked(task: Task, done: Callable[[], None]) -> Floats:
    """The same grid and apps, which train together in chunks."""
    from simulations.together import Meeting, TogetherGrid, chunk

    data = [task.data(client) for client in range(task.clients)]
    kept: dict[int, tuple[Tensor, Tensor]] = {}

    def compute(asked: Sequence[tuple[int, Floats]]) -> list[Floats]:
        clients = [client for client, _ in asked]
        if clients[0] not in kept:
            kept[clients[0]] = (
                torch.stack([data[client][0] for client in clients]),
                torch.stack([data[client][1] for client in clients]),
            )
        # Each was sent the round's one vector.
        starts = torch.from_numpy(asked[0][1].copy()).expand(len(asked), -1)
        return list(train_stacked(task, starts, *kept[clients[0]]).numpy())

    meeting = Meeting[tuple[int, Floats], Floats](compute, chunk(task.parameters))
    return _over_grid(
        task, done, lambda client, start: meeting.ask((client, start)), lambda apps: TogetherGrid(apps, meeting.hold)
    )


def flower_ray(task: Task, done: Callable[[], None]) -> Floats:
    """Flower's own simulation of the same app, on Ray with as many actors as there are cores."""
    from flwr.app import ArrayRecord, RecordDict
    from flwr.app import Context as FlowerContext
    from flwr.app import Message as FlowerMessage
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.simulation import run_simulation  # noqa: TID251  it is what is measured

    client_app, server_app, vectors = ClientApp(), ServerApp(), list[Floats]()

    @client_app.train()
    def fit(message: FlowerMessage, context: FlowerContext) -> FlowerMessage:
        client = int(context.node_config["partition-id"])
        end = train(_network(task), task, _read(message), _data(task, client))
        return FlowerMessage(RecordDict({"vector": ArrayRecord([end])}), reply_to=message)

    @server_app.main()
    def main(grid: Grid, context: FlowerContext) -> None:
        del context
        vector = start_of(task)
        while len(nodes := list(grid.get_node_ids())) < task.clients:
            pass
        for _ in range(task.rounds):
            content = RecordDict({"vector": ArrayRecord([vector])})
            replies = grid.send_and_receive([FlowerMessage(content, node, "train") for node in nodes])
            vector = _mean([_read(reply) for reply in replies], task)
            done()
        vectors.append(vector)

    run_simulation(server_app, client_app, task.clients, backend_config={"client_resources": {"num_cpus": 1}})
    return vectors[0]


def pfl(task: Task, done: Callable[[], None]) -> Floats:
    """Apple's pfl: one resident model, its own averaging."""
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam.base import NNTrainHyperParams
    from pfl.metrics import Metrics, Weighted
    from pfl.model.pytorch import PyTorchModel

    class Network(nn.Sequential):
        def loss(self, features: Tensor, targets: Tensor, eval: bool = False) -> Tensor:
            self.train(not eval)
            return functional.cross_entropy(self(features), targets)

        def metrics(self, features: Tensor, targets: Tensor) -> dict[str, object]:
            return {"loss": Weighted(float(self.loss(features, targets, eval=True)), len(targets))}

    class Mark(TrainingProcessCallback):  # type: ignore[misc]  # pfl has no types here
        def after_central_iteration(self, *given: object, **named: object) -> tuple[bool, Metrics]:
            del given, named
            done()
            return False, Metrics()

    module = Network(*network(task))
    data = {client: Dataset(list(task.data(client))) for client in range(task.clients)}
    dataset = FederatedDataset(data.__getitem__, get_user_sampler("minimize_reuse", list(data)))
    model = PyTorchModel(
        module,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(module.parameters(), lr=1.0),
    )
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=task.rounds,
            evaluation_frequency=task.rounds + 1,
            train_cohort_size=task.clients,
            val_cohort_size=0,
        ),
        SimulatedBackend(training_data=dataset, val_data=dataset),
        model,
        NNTrainHyperParams(
            local_batch_size=task.batch, local_num_epochs=1, local_learning_rate=_RATE, local_max_grad_norm=None
        ),
        callbacks=[Mark()],
        send_metrics_to_platform=False,
    )
    return _flat(module)


PLAIN: Mapping[str, Callable[[Task, Callable[[], None]], Floats]] = {
    "loop": loop,
    "inline": inline,
    "stacked": stacked,
    "flower-ray": flower_ray,
    "pfl": pfl,
}


def _over_grid(
    task: Task,
    done: Callable[[], None],
    fit: Callable[[int, Floats], Floats],
    grid_of: Callable[[dict[int, ClientApp]], InProcessGrid],
) -> Floats:
    """Average over a grid in this process; ``fit`` returns what a client's training from a vector ends with."""
    from flwr.app import Message
    from flwr.clientapp import ClientApp

    from common.identity import Signature
    from common.link.records import from_records, to_records
    from common.messages import Sealed

    def packed(vector: Floats) -> RecordDict:
        return to_records(Sealed(b"", Signature(b""), {"vector": vector.tobytes()}))

    def read(message: Message) -> Floats:
        return np.frombuffer(from_records(message.content).parts["vector"], dtype=np.float32)

    def app_of(client: int) -> ClientApp:
        app = ClientApp()

        @app.train("fit")
        def answer(message: Message, context: Context) -> Message:
            del context
            return Message(packed(fit(client, read(message))), reply_to=message)

        return app

    grid = grid_of({2 + client: app_of(client) for client in range(task.clients)})
    vector = start_of(task)
    for _ in range(task.rounds):
        content = packed(vector)
        replies = grid.send_and_receive([Message(content, node, "train.fit") for node in grid.get_node_ids()])
        vector = _mean([read(reply) for reply in replies], task)
        done()
    return vector


def _read(message: Message) -> Floats:
    """Return the vector in a message of Flower's own simulation."""
    from flwr.app import ArrayRecord

    record = message.content["vector"]
    assert isinstance(record, ArrayRecord)
    (array,) = record.values()
    return np.frombuffer(array.data, dtype=np.float32, offset=len(array.data) - 4 * array.shape[0])


def _flat(model: nn.Module) -> Floats:
    flat: Floats = nn.utils.parameters_to_vector(model.parameters()).detach().numpy().copy()
    return flat


def _mean(vectors: Sequence[Floats], task: Task) -> Floats:
    assert len(vectors) == task.clients
    total = np.zeros(task.parameters)
    for vector in vectors:
        total += vector
    return (total / task.clients).astype(np.float32)


@lru_cache(maxsize=1)
def _network(task: Task) -> nn.Sequential:
    """Return one model a process."""
    return network(task)


@lru_cache(maxsize=1024)
def _data(task: Task, client: int) -> tuple[Tensor, Tensor]:
    return task.data(client)


def main(argv: Sequence[str]) -> int:
    """Run one engine and mark its rounds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("engine", choices=PLAIN)
    for field in fields(Task):
        parser.add_argument(f"--{field.name}", type=int, default=field.default)
    chosen = vars(parser.parse_args(argv))
    torch.set_num_threads(1)
    vector = PLAIN[chosen.pop("engine")](Task(**chosen), lambda: print(ROUND, flush=True))
    print(f"{np.abs(vector).sum():.6f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
