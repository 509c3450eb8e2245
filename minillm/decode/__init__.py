"""Stage 5: logits become a token id, and ids become text again."""
