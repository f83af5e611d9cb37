"""What callers brought, looked at again where what it is looked at against has changed: other engines, other facts."""

import logging
import threading
from dataclasses import replace

from server.assets.asset import DEPLOYMENT, AssetState, BadAsset, Facts, blob
from server.assets.library import Library
from server.assets.rows import Row
from server.assets.rules import preprocessor_of

log = logging.getLogger(__name__)


def fit_again(library: Library, stop: threading.Event) -> None:
    """May take as long as reading all that is looked at. Ends behind the file at which `stop` is set."""
    for row in library.store.in_state(AssetState.READY):
        if stop.is_set():
            return
        if row.asset.owner == DEPLOYMENT or row.source == library.against:
            continue
        try:
            facts = _facts(library, row)
        except Exception:  # of one, perhaps deleted meanwhile; it stays as it is, and the next start tries again
            if library.store.by_id(row.asset.id) is not None:
                log.exception("asset %s (%s) was not looked at again", row.asset.id, row.asset.name)
        else:
            library.store.set_facts(row.asset.id, facts, library.against)  # content never changes under an id


def _facts(library: Library, row: Row) -> Facts:
    """What fits nothing any more stays: its engines may come back."""
    asset = row.asset
    try:
        facts = library.inspect(blob(library.folder, asset.sha256), asset.type)
    except BadAsset as bad:
        log.warning("asset %s (%s) fits no engine any more: %s", asset.id, asset.name, bad)
        return replace(asset.facts, engines=())
    return replace(facts, preprocessor=preprocessor_of(row.preprocessor, facts.preprocessor, asset.name, asset.type))
