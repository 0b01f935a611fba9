"""`/v1/chat/completions`."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from serving.auth import client_of

router = APIRouter(prefix="/v1", dependencies=[Depends(client_of)])
