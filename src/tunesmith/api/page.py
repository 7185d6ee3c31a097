"""Lists a page at a time, as OpenAI's clients ask for them. Every list says `has_more`: without it they would ask for ever."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from tunesmith.api.errors import BadParameter
from tunesmith.jobs.ids import possible


def listed(data: Sequence[dict], has_more: bool = False) -> dict:
    return {"object": "list", "data": list(data), "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None, "has_more": has_more}


def page_of(connection: sa.Connection, table: sa.Table, where: Sequence, *, after: str | None, limit: int,
            newest_first: bool, by: Sequence[str] = ("created_at", "id")) -> tuple[list, bool]:
    """(rows, whether there are more) of `table` after the row with id `after`, in the order of the columns `by`.

    Raises:
        BadParameter: `after` is not the id of a row that this list holds.
    """
    query, columns = sa.select(table).where(*where), [table.c[name] for name in by]
    if after is not None:
        place = connection.execute(sa.select(*columns).where(table.c.id == after, *where)).first() if possible(after) else None
        if place is None:
            raise BadParameter(f"No such id in this list: {after}", "after")
        here, there = sa.tuple_(*columns), sa.tuple_(*place)
        query = query.where(here < there if newest_first else here > there)
    rows = connection.execute(query.order_by(*(c.desc() if newest_first else c.asc() for c in columns))
                              .limit(limit + 1)).mappings().all()
    return list(rows[:limit]), len(rows) > limit
