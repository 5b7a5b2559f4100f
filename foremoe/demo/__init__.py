"""The main job: a small MoE model post-trained with GRPO, each step balanced and unbalanced."""
