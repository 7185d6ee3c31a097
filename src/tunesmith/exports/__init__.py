"""What an adapter becomes for other programs, each asked the same questions as the adapter on its base (ADR 14)."""
