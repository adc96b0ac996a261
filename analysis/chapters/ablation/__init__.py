"""An ablation: the effects of its settings (effects), and its section."""
