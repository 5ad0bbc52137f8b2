"""Proof that the instruments of the failure tests, in failures_lab.py, can fail."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from tests.integration.failures_lab import (
    Scene,
    no_frame_lost,
    nothing_left,
    scene_on_blue,
    traces,
)

__all__ = ["scene_on_blue"]  # a fixture

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_frames_that_all_arrive_are_all_counted(scene: Scene) -> None:
    async with no_frame_lost(scene.guest, scene.lab.peers["blue"]):
        await asyncio.sleep(0.2)


async def test_frames_that_a_cable_loses_are_noticed(scene: Scene) -> None:
    (connection,) = await scene.lab.links.connections()

    async def cut() -> None:
        async with no_frame_lost(scene.guest, scene.lab.peers["blue"]):
            await scene.lab.sh(f"ip link set {connection.device} down")
            await asyncio.sleep(0.1)
            await scene.lab.sh(f"ip link set {connection.device} up")

    with pytest.raises(AssertionError, match="arrived"):
        await cut()


async def _a_link(scene: Scene, undo: AsyncExitStack) -> None:
    await scene.lab.sh("ip link add stray type bridge")
    undo.push_async_callback(scene.lab.sh, "ip link del stray")


async def _a_backend(scene: Scene, undo: AsyncExitStack) -> None:
    await scene.guest.qmp("netdev_add", type="user", id="stray")
    undo.push_async_callback(scene.guest.qmp, "netdev_del", id="stray")


async def _an_fd(_scene: Scene, undo: AsyncExitStack) -> None:
    undo.callback(os.close, os.open("/dev/net/tun", os.O_RDWR))


@pytest.mark.parametrize("leave", [_a_link, _a_backend, _an_fd])
async def test_what_is_left_behind_is_noticed(
    scene: Scene, leave: Callable[[Scene, AsyncExitStack], Awaitable[None]]
) -> None:
    before = await traces(scene.lab)
    async with AsyncExitStack() as undo:
        await leave(scene, undo)
        with pytest.raises(AssertionError):
            await nothing_left(scene.lab, before, within=0.1)
    await nothing_left(scene.lab, before)
