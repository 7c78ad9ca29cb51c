"""Tiny Hugging Face models with random weights, a tokenizer, and the program's runner.

Holds: the fixtures ``tiny`` and ``run``.
May import: pytest, torch, transformers, tokenizers, ``secant``.
"""

import json

import pytest
import torch

WORDS = ["the", "a", "film", "was", "good", "bad", "long", "plot", "cat", "dog", "ran", "and"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def save_tokenizer(folder, **config):
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: number for number, word in enumerate(["[UNK]", "[PAD]", "[EOS]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def save_bert(folder, kind="BertModel", **more):
    import transformers

    sizes = SIZES | {"intermediate_size": 32, "vocab_size": 40, "max_position_embeddings": 24}
    getattr(transformers, kind)(transformers.BertConfig(**sizes | more)).save_pretrained(folder)
    save_tokenizer(folder, pad_token="[PAD]")


def save_roberta(folder):
    import transformers

    sizes = SIZES | {"intermediate_size": 32, "vocab_size": 40, "max_position_embeddings": 20}
    config = transformers.RobertaConfig(**sizes, pad_token_id=1)
    transformers.RobertaModel(config).save_pretrained(folder)
    save_tokenizer(folder, pad_token="[PAD]")


def save_llama(folder):
    import transformers

    sizes = SIZES | {"intermediate_size": 32, "vocab_size": 40, "num_key_value_heads": 1}
    config = transformers.LlamaConfig(
        **sizes, tie_word_embeddings=True, max_position_embeddings=32, eos_token_id=2
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    save_tokenizer(folder, eos_token="[EOS]")


def save_vit(folder):
    import transformers

    sizes = SIZES | {"intermediate_size": 32, "image_size": 8, "patch_size": 4, "num_labels": 3}
    transformers.ViTForImageClassification(transformers.ViTConfig(**sizes)).save_pretrained(folder)
    processor = {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "do_rescale": True,
        "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        "size": {"height": 8, "width": 8},
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def save_resnet(folder):
    import transformers

    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3
    )
    transformers.ResNetForImageClassification(config).save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Folders of tiny models: encoder, classifier, decoder, roberta, vit, resnet."""
    from secant.load.huggingface import quiet

    root = tmp_path_factory.mktemp("tiny")
    savers = {
        "encoder": save_bert,
        "classifier": lambda path: save_bert(path, "BertForSequenceClassification"),
        "decoder": save_llama,
        "roberta": save_roberta,
        "vit": save_vit,
        "resnet": save_resnet,
    }
    with quiet():
        for name, save in savers.items():
            (root / name).mkdir()
            torch.manual_seed(0)
            save(root / name)
    return root
