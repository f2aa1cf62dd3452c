"""The model card: which SAEs it marks, and why."""

from sae_sweep.report.model_card import Published, model_card


def test_a_fine_tuned_sae_is_not_called_undertrained() -> None:
    general = Published("general", {}, {"init_match": 0.02})
    short = Published("short", {}, {"init_match": 0.5})
    tuned = Published("tuned", {}, {"init_match": 0.5, "new_features": 0.5})
    card = model_card("me/saes", [general, tuned], 0.1)
    assert "| `tuned` ‡ |" in card
    assert "| `general` |" in card
    assert "‡ are **fine-tuned**: more than 10% of their features still match the SAE that" in card
    assert "undertrained" not in card
    assert "**fine-tuned**" not in model_card("me/saes", [general, short], 0.1)
    assert r"| `short` \* |" in model_card("me/saes", [general, short], 0.1)
