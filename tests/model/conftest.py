import pytest


@pytest.fixture
def with_hub_tower(tmp_path):
    """Returns a function that describes a model with a small text tower of the hub, of a type."""
    transformers = pytest.importorskip("transformers")
    common = {"vocab_size": 50, "pad_token_id": 1}
    layers = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    m2m = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    configs = {
        "bert": lambda: transformers.BertConfig(**common, **layers),
        "roberta": lambda: transformers.RobertaConfig(**common, **layers),
        "mt5": lambda: transformers.MT5Config(**common, d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2),
        "m2m_100": lambda: transformers.M2M100Config(
            **common, **m2m, d_model=32, encoder_layers=2, decoder_layers=1, max_position_embeddings=40
        ),
    }

    def describe(kind: str) -> dict:
        configs[kind]().save_pretrained(tmp_path / kind)
        text = {"hf_model_name": str(tmp_path / kind), "hf_proj_type": "linear", "hf_pooler_type": "mean_pooler"}
        return {
            "embed_dim": 16,
            "vision_cfg": {"layers": 3, "width": 32, "head_width": 16, "patch_size": 8},
            "text_cfg": text,
        }

    return describe
