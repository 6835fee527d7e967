"""The shop as Celery's workers visit it."""

from __future__ import annotations

import os
from pathlib import Path

import shop
from celery import Celery

HOME = Path(os.environ["SHOP_HOME"])

app = Celery("shop", broker="filesystem://", backend=f"file://{HOME}/results")
app.conf.update(
    broker_transport_options={
        "data_folder_in": f"{HOME}/in",
        "data_folder_out": f"{HOME}/in",
        "control_folder": f"{HOME}/control",
        "processed_folder": f"{HOME}/processed",
        "store_processed": True,
        "polling_interval": 0.01,
    },
    worker_enable_remote_control=False,
    worker_hijack_root_logger=False,
)


@app.task(name="visit")
def visit(path: str, meet: bool = False) -> dict[str, object]:
    answer = shop.visit(path)
    if meet:
        shop.fetch("/meet")
    return answer
