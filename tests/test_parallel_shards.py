"""Both ways give every rank the same bytes, and cost what arithmetic says."""

from __future__ import annotations

from pathlib import Path

from minillm.load import Checkpoint
from minillm.parallel.ranks import Ranks
from minillm.parallel.shards import read_for_all, read_own

TOWN = Path(__file__).resolve().parent.parent / "data" / "town"


def test_reading_and_being_sent_give_the_same_weights() -> None:
    """Catches a slice that is cut elsewhere in what was sent, and bytes counted that never went."""
    whole = Checkpoint.open(TOWN).nbytes
    with Ranks(2) as ranks:
        own, sent = ranks.run(read_own, TOWN), ranks.run(read_for_all, TOWN)
    assert [got.digest for got in own] == [got.digest for got in sent]
    assert own[0].digest != own[1].digest
    assert [got.sent for got in sent] == [whole, 0] and sent[1].read == 0
    assert sent[0].read >= whole > max(got.read for got in own) > own[0].kept == own[1].kept
