"""The release of a trained model: its package, the gate, the promotion, and its predictions."""
