"""Hard negatives of image-text matching: which are drawn."""

import torch

from train.matching import Matching, draw


def test_hard_negatives_are_drawn_by_similarity_and_never_the_own_pair() -> None:
    rows = 20_000
    logits = torch.tensor([2.0, 0.0, 1.0, 5.0, -1.0]).expand(rows, -1)
    own = torch.full((rows,), 3)
    same = torch.zeros(rows, 5, dtype=torch.bool)
    same[:, 0] = True
    shares = torch.rand(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = draw(logits, own, same, shares, torch.tensor([4, 2, 0, 1, 3]))
    share = torch.bincount(drawn, minlength=5) / rows
    expected = torch.tensor([0.0, 0.0, 1.0, 0.0, -1.0]).exp() * torch.tensor([0.0, 1, 1, 0, 1])
    torch.testing.assert_close(share, expected / expected.sum(), atol=0.015, rtol=0)
    assert share[0] == share[3] == 0
    everywhere = draw(logits[:3], own[:3], torch.ones(3, 5, dtype=torch.bool), shares[:3], torch.arange(5))
    assert 3 not in everywhere.tolist()  # where every caption is the same, any other row must do
    edges = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert draw(logits[:2], own[:2], same[:2], edges, torch.tensor([4, 2, 0, 1, 3])).tolist() == [2, 4]


def test_the_draws_follow_the_rows_wherever_they_stand() -> None:
    matching = Matching(4, seed=1)
    one, other = (matching._shares("text", torch.tensor(places)) for places in ([7, 8, 9], [9, 7, 8]))
    assert one.tolist() == other[[1, 2, 0]].tolist()
    assert one.tolist() != matching._shares("image", torch.tensor([7, 8, 9])).tolist()
    assert one.tolist() != Matching(4, seed=2)._shares("text", torch.tensor([7, 8, 9])).tolist()
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    apart = torch.zeros(3, 3, dtype=torch.bool)
    turned = torch.tensor([2, 0, 1])
    straight = draw(logits, torch.arange(3), apart, one, torch.tensor([7, 8, 9]))
    swapped = draw(logits[turned][:, turned], torch.arange(3), apart, other, torch.tensor([9, 7, 8]))
    assert turned[swapped].tolist() == straight[turned].tolist()
