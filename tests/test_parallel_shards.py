"""Both ways give every rank the same bytes, and cost what arithmetic says."""

from __future__ import annotations

from pathlib import Path

from minillm.load import Checkpoint
from minillm.parallel.ranks import Ranks
from minillm.parallel.shards import read_for_all, read_own, send_seconds

TOWN = Path(__file__).resolve().parent.parent / "data" / "town"


def test_reading_and_being_sent_give_the_same_weights() -> None:
    """Catches a slice that is cut elsewhere in what was sent, and bytes counted that never went."""
    checkpoint = Checkpoint.open(TOWN)
    whole = checkpoint.nbytes
    with Ranks(2) as ranks:
        own, sent = ranks.run(read_own, TOWN), ranks.run(read_for_all, TOWN)
        alone = ranks.run(read_for_all, TOWN, 1)
        assert all(len(s) == 3 and min(s) > 0 for s in ranks.run(send_seconds, 64, 3))
    assert [got.digest for got in own] == [got.digest for got in sent]
    assert [got.digest for got in alone] == [got.digest for got in sent]
    assert alone[0].sent == [info.nbytes for info in checkpoint.tensors.values()]
    assert len(sent[0].sent) < len(alone[0].sent)
    assert own[0].digest != own[1].digest
    assert [sum(got.sent) for got in sent] == [whole, 0] and sent[1].read == 0
    assert sent[0].read >= whole > max(got.read for got in own) > own[0].kept == own[1].kept
