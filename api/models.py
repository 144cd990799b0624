"""`/v1/models`: what live workers serve now."""

from __future__ import annotations

from fastapi import APIRouter

from ..jobs.errors import NotFound
from .deps import BackendDep
from .schemas import ModelList, ModelObject

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("")
def list_models(backend: BackendDep) -> ModelList:
    """The models that can be asked for."""
    return ModelList(data=[ModelObject.of(card) for card in backend.store.models()])


@router.get("/{model_id:path}")
def retrieve_model(model_id: str, backend: BackendDep) -> ModelObject:
    """One model. Its name may hold slashes."""
    for card in backend.store.models():
        if card.id == model_id:
            return ModelObject.of(card)
    message = f"The model '{model_id}' does not exist or no worker serves it now."
    raise NotFound(message, param="model", code="model_not_found")
