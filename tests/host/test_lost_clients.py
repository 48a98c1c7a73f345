"""Clients of the host that lose their connection, or fit at the same time."""

from __future__ import annotations

import threading

import pytest
import torch
from clients import Client, post_and_drop
from controls import PROMPT, Control
from graphs import Parts, apply, free, sweep

from tools.comfyui.server import Graph, Host


def fit_and_draw(seed: int) -> Graph:
    graph = Graph()
    parts = Parts(graph, "demo")
    applied = apply(graph, parts.model, parts.fit(seed=seed), parts.clip)
    parts.sampled(applied[0], parts.encoded(PROMPT, applied[1]), steps=2)
    return graph


def steered_graph(name: str, steps: int, strength: float) -> Graph:
    graph = Graph()
    parts = Parts(graph, "demo")
    applied = apply(graph, parts.model, graph.add("LoadACTMap", name=name), parts.clip, strength=strength)
    parts.sampled(applied[0], parts.encoded(PROMPT, applied[1]), steps=steps)
    return graph


@pytest.mark.parametrize("work", ["fit", "sampling", "sweep"])
def test_client_disconnects_while_its_workflow_runs(
    host: Host, saved: dict[str, str], control: Control, work: str
) -> None:
    client = Client(host)
    if work == "fit":
        graph = fit_and_draw(seed=11)
    elif work == "sampling":
        graph = steered_graph(saved["demo"], 60, strength=0.4)
    else:
        graph = Graph()
        parts = Parts(graph, "demo")
        sweep(graph, parts, graph.add("LoadACTMap", name=saved["demo"]))
    prompt_id = host.queue(graph, client.id)
    client.wait_for('"progress"')  # of a node
    client.drop()
    assert not host.wait(prompt_id).error
    control.check()


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_client_disconnects_while_it_queues(host: Host, saved: dict[str, str], control: Control, share: float) -> None:
    graph = steered_graph(saved["demo"], 2, strength=0.2 + share)
    post_and_drop(host, "/prompt", {"prompt": graph.prompt}, share=share)
    after = steered_graph(saved["demo"], 2, strength=0.3 + share)
    assert not host.wait(host.queue(after)).error
    control.check()


def test_two_clients_fit_at_once(host: Host, control: Control) -> None:
    seeds = (21, 22)
    alone: list[torch.Tensor] = []
    for seed in seeds:
        free(host, unload_models=False)
        alone.append(host.latent(host.run(fit_and_draw(seed))))
    assert not torch.equal(*alone)
    free(host, unload_models=False)
    clients = [Client(host) for _ in seeds]
    together: dict[int, torch.Tensor] = {}

    def work(seed: int, client: Client) -> None:
        together[seed] = host.latent(host.wait(host.queue(fit_and_draw(seed), client.id)))

    threads = [threading.Thread(target=work, args=pair) for pair in zip(seeds, clients, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for client in clients:
        client.drop()
    assert all(torch.equal(together[seed], latent) for seed, latent in zip(seeds, alone, strict=True))
    control.check()
