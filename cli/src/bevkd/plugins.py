"""`bevkd plugins`: list the installed plug-ins."""

from __future__ import annotations

from bevkd.display import print_table, warn


def plugins() -> None:
    """List the installed methods, detectors and data sets, and warn of broken ones."""
    from bevkd_common.config.plugins import GROUPS, installed

    sorts = [installed(spec_type) for spec_type in GROUPS]
    rows = [
        (sort.noun, kind, sort.origin[kind], spec.summary) for sort in sorts for kind, spec in sort.found.items()
    ]
    print_table(("sort", "name", "from", "summary"), rows)
    for sort in sorts:
        for kind in sort.broken:
            warn(sort.why_not(kind))
