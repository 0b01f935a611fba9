"""`/document.schema.json`: the shape of readings in JSON."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import JSONResponse

from deepseek_ocr.server.openai.reading_schema import document_schema

router = APIRouter()


@router.head("/document.schema.json", include_in_schema=False)
@router.get("/document.schema.json")
async def show_schema() -> JSONResponse:
    """The JSON Schema of what `response_format` and `output_format: json` give."""
    return JSONResponse(document_schema())
