"""Rates of dropout in a config.json: each family has names of its own for those that it has."""

from dataclasses import dataclass
from typing import Any

from pretrain.config import Mistake
from pretrain.interop import fields
from pretrain.interop.fields import Config, Field, Fields
from pretrain.models.dropout import Dropout


@dataclass(frozen=True)
class Rates:
    """The field `dropout`: a row for each rate that config.json has."""

    rows: tuple[Field, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the rates."""
        return tuple(key for row in self.rows for key in row.keys)

    def read(self, config: Config, above: Fields) -> dict[str, Any]:
        """The node of rates."""
        rates = {row.field: row.read(config, {})[row.field] for row in self.rows}
        return {"dropout": Dropout(**rates)}

    def write(self, node: Any) -> dict[str, Any]:
        """The keys. Raises Mistake for a rate that has none."""
        known = {row.field for row in self.rows}
        for name, rate in vars(node.dropout).items():
            if rate and name not in known:
                raise Mistake(f"model.dropout.{name} is {rate}, which must be 0 there")
        return fields.write(self.rows, node.dropout)
