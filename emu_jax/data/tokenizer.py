"""Prompts into token ids: CLIP's byte-pair encoding, T5's sentencepiece, a small one of ours."""

import dataclasses
import difflib
import itertools
import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import sentencepiece
import tokenizers
from jaxtyping import Bool, Int32
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from emu_jax.errors import InputError

START, END = "<|startoftext|>", "<|endoftext|>"
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")  # of a special token
SPACE = "Ġ"  # what begins a word in a byte-level vocabulary
BYTES = 256  # symbols that a byte-level vocabulary begins with
KINDS = "tokenizer.json, vocab.json with merges.txt (CLIP), or spiece.model (T5)"


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """Texts to fixed-length rows of token ids; made by `load_tokenizer`.

  Can be pickled, so that worker processes of a data pipeline can hold one.
  """

  model: tokenizers.Tokenizer | sentencepiece.SentencePieceProcessor
  max_length: int  # tokens a row, start and end included
  pad_id: int
  vocab_size: int  # ids are below it
  # Of a word that textual inversion learned as several vectors: the id of the first -> all ids.
  vectors: Mapping[int, Sequence[int]] = dataclasses.field(default_factory=dict)

  def __call__(
    self, texts: Sequence[str], *, overflow: Literal["error", "truncate"]
  ) -> tuple[Int32[np.ndarray, "B L"], Bool[np.ndarray, "B L"]]:
    """Ids, padded to max_length, and a mask that is True where they are not padding.

    Args:
      overflow: what becomes of a text with too many tokens; "truncate" keeps the first ones and
        the end token.
    Raises: InputError for such a text under "error", and for a text that is not Unicode.
    """
    tokens = np.full((len(texts), self.max_length), self.pad_id, np.int32)
    mask = np.zeros(tokens.shape, bool)
    for row, (text, ids) in enumerate(zip(texts, self.encode(texts), strict=True)):
      if len(ids) > self.max_length:
        if overflow == "error":
          raise InputError(
            f"Tokenizer: the prompt {excerpt(text)} has {len(ids)} tokens, start and end included, "
            f"and the limit is {self.max_length}; shorten it"
          )
        ids = [*ids[: self.max_length - 1], ids[-1]]
      tokens[row, : len(ids)] = ids
      mask[row, : len(ids)] = True
    return tokens, mask

  def encode(self, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text with its start and end tokens, neither padded nor cut."""
    for text in texts:
      try:
        text.encode()
      except UnicodeEncodeError as error:  # bytes of a command line that are not UTF-8 end up here
        raise InputError(
          f"Tokenizer: the prompt {excerpt(text)} is not Unicode at character {error.start}; "
          "give it in UTF-8"
        ) from error
    if isinstance(self.model, tokenizers.Tokenizer):
      rows = [encoding.ids for encoding in self.model.encode_batch_fast(list(texts))]
      several = self.vectors
      return [[i for first in ids for i in several.get(first, (first,))] for ids in rows]
    model = self.model
    special = (model.unk_id(), model.eos_id(), model.pad_id())
    ids = {model.id_to_piece(i): i for i in special if i >= 0}
    pattern = re.compile("(" + "|".join(map(re.escape, ids)) + ")")
    rows = []
    for text in texts:  # a special token in a text is itself, as in Hugging Face's
      parts = ([ids[p]] if p in ids else model.encode(p) for p in pattern.split(text))
      rows.append([*itertools.chain.from_iterable(parts), model.eos_id()])
    return rows


def excerpt(text: str, length: int = 40) -> str:
  """The text's beginning, quoted, on one line, in characters that any terminal prints."""
  return ascii(text if len(text) <= length else text[: length - 3] + "...")


def unlearned(tokenizer: Tokenizer, limit: int, text: str) -> dict[str, list[str]]:
  """Words of a text that captions never had, each with the nearest that they had by spelling.

  It can tell where `train_tokenizer` stopped below its limit: then each word of the captions is one
  token. Of any other tokenizer nothing is known.

  Args:
    limit: tokens that it might have had, the `vocab_size` of its encoder.
  """
  model = tokenizer.model
  if not isinstance(model, tokenizers.Tokenizer) or tokenizer.vocab_size >= limit:
    return {}
  begun = [token[1:] for token in model.get_vocab() if token[0] == SPACE and token[1:].isalpha()]
  # What is the beginning of another was merged on the way to it.
  known = sorted(w for w in begun if not any(o.startswith(w) and o != w for o in begun))
  if not known:
    return {}
  pieces = model.pre_tokenizer.pre_tokenize_str(model.normalizer.normalize_str(text))
  words = dict.fromkeys(piece.lstrip(SPACE) for piece, _ in pieces)
  letters = [word for word in words if word.isascii() and word.isalpha()]  # the rest is bytes here
  strange = [word for word in letters if word not in known]
  return {word: difflib.get_close_matches(word, known, 3, cutoff=0.0) for word in strange}


def load_tokenizer(path: str | pathlib.Path, max_length: int) -> Tokenizer:
  """The tokenizer of a folder or file: `tokenizer.json`, `vocab.json` + `merges.txt`, `*.model`.

  In a folder they are looked for in this order. Padding and the other special tokens of the
  Hugging Face formats are those of `tokenizer_config.json` and `special_tokens_map.json`, which
  stand in every tokenizer folder of a diffusers pipeline; else rows are padded as `tokenizer.json`
  says, or with the end token, as in CLIP ViT-L. A special token in a text is itself, not its
  letters: Stable Diffusion 2 pads with "!", so a prompt's "!" has another id than elsewhere.

  Args:
    max_length: tokens a row, start and end included: the encoder's `max_length`.
  Raises: InputError, one line, where there is no such file or it cannot be used.
  """
  file = tokenizer_file(pathlib.Path(path))
  if file.suffix == ".model":
    tokenizer = load_sentencepiece(file, max_length)
  else:
    tokenizer = load_bpe(file, max_length)
  fewest = len(tokenizer.encode([""])[0])
  if not fewest:
    raise InputError(
      f"load_tokenizer: {file} gives an empty prompt no token; give one that adds a start or an "
      "end token"
    )
  if max_length <= fewest:
    raise InputError(
      f"load_tokenizer: max_length={max_length} leaves no room beside the {fewest} tokens that "
      f"{file} adds to every prompt; give at least {fewest + 1}"
    )
  return tokenizer


def tokenizer_file(path: pathlib.Path) -> pathlib.Path:
  """The file that says which kind of tokenizer `path` is."""
  if path.is_file():
    if path.name == "merges.txt":
      return path.with_name("vocab.json")
    if path.suffix in (".json", ".model"):
      return path
    raise InputError(f"load_tokenizer: {path} is no tokenizer file; give {KINDS}")
  if not path.is_dir():
    raise InputError(f"load_tokenizer: {path} does not exist; give a folder or file with {KINDS}")
  for name in ("tokenizer.json", "vocab.json", "spiece.model"):
    if (path / name).is_file():
      return path / name
  found = sorted(path.glob("*.model"))
  if len(found) == 1:
    return found[0]
  if found:
    names = ", ".join(file.name for file in found)
    raise InputError(f"load_tokenizer: {path} holds {names}; name one of these files")
  raise InputError(f"load_tokenizer: {path} holds no tokenizer; put there {KINDS}")


def load_sentencepiece(file: pathlib.Path, max_length: int) -> Tokenizer:
  """T5's: the end token after every text, nothing before it.

  Differs: sentinels (`<extra_id_0>`), which only T5's own training writes, are letters.
  """
  data = read(file)
  try:
    if not data:  # the library takes it for a model with no pieces, and complains later
      raise RuntimeError("the file is empty")
    model = sentencepiece.SentencePieceProcessor(model_proto=data)
  except RuntimeError as error:
    raise unusable(file, error) from error
  if model.eos_id() < 0:
    raise unusable(file, "it has no end token </s>")
  return Tokenizer(model, max_length, max(model.pad_id(), 0), model.vocab_size())


def load_bpe(file: pathlib.Path, max_length: int) -> Tokenizer:
  """A Hugging Face `tokenizer.json`, or CLIP's vocabulary and merges made into one."""
  state = read_json(file)
  special = {}
  if file.name == "vocab.json":
    state = clip_state(file, state)
    special = {token: {"special": True} for token in (START, END)}
  try:
    named, pad = special_tokens(file.parent)
    model = tokenizers.Tokenizer.from_buffer(json.dumps(state).encode())
    add_tokens(model, special | named)
  except InputError:
    raise
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise unusable(file, error) from error
  if pad is None and model.padding:
    pad = model.padding["pad_token"]
  if pad is None:
    pad = next((t for t in (END, "<pad>", "[PAD]") if model.token_to_id(t) is not None), None)
  pad_id = None if pad is None else model.token_to_id(pad)
  if pad_id is None:
    raise unusable(file, f"its padding token is {pad!r}, which it does not hold")
  model.no_padding()
  model.no_truncation()
  # Ids may have gaps: the highest decides.
  vocab = model.get_vocab()
  return Tokenizer(model, max_length, pad_id, max(vocab.values()) + 1, several_vectors(model))


def several_vectors(model: tokenizers.Tokenizer) -> dict[int, tuple[int, ...]]:
  """Ids of the added tokens "<word>", "<word>_1", "<word>_2", …, by that of the first.

  Source: Textual Inversion as diffusers' pipelines store it: a prompt has the first alone.
  """
  ids = {token.content: i for i, token in model.get_added_tokens_decoder().items()}
  found = {}
  for word, first in ids.items():
    rest = itertools.takewhile(ids.__contains__, (f"{word}_{n}" for n in itertools.count(1)))
    if numbers := [ids[name] for name in rest]:
      found[first] = (first, *numbers)
  return found


def special_tokens(folder: pathlib.Path) -> tuple[dict[str, dict], str | None]:
  """The tokens that a folder's files set apart, with their options, and the padding token.

  Source: transformers: files since 2023 list every token with its id (`added_tokens_decoder`); in
    older ones `added_tokens.json` has those that were added, `special_tokens_map.json` overrules
    the rest, and the last role of a token its options.
  """
  config, roles = ({}, {})
  if (folder / "tokenizer_config.json").is_file():
    config = read_json(folder / "tokenizer_config.json")
  listed = config.get("added_tokens_decoder") or {}
  added = {}
  if not listed and (folder / "special_tokens_map.json").is_file():
    roles = read_json(folder / "special_tokens_map.json")
  if not listed and (folder / "added_tokens.json").is_file():
    added = read_json(folder / "added_tokens.json")
  roles = config | roles
  found: dict[str, dict] = {}
  for token in (*map(roles.get, ROLES), *(roles.get("additional_special_tokens") or ())):
    options = {"content": token} if isinstance(token, str) else dict(token or {})
    if "content" in options:
      found[options["content"]] = {"special": True} | options
  for token, index in sorted(added.items(), key=lambda item: int(item[1])):
    found[token] = {"normalized": not found.get(token)} | found.get(token, {}) | {"id": int(index)}
  for index, options in sorted(listed.items(), key=lambda item: int(item[0])):
    found[options["content"]] = {"id": int(index)} | options
  pad = roles.get("pad_token")
  return found, pad.get("content") if isinstance(pad, dict) else pad


def add_tokens(model: tokenizers.Tokenizer, special: dict[str, dict]) -> None:
  """Sets tokens apart that `model` holds, and adds those whose id follows its vocabulary's."""
  known_tokens = {token.content for token in model.get_added_tokens_decoder().values()}
  for token, options in special.items():
    if token in known_tokens or (model.token_to_id(token) is None and "id" not in options):
      continue
    flags = {name: bool(options.get(name)) for name in FLAGS}
    model.add_tokens([tokenizers.AddedToken(token, **flags)])
    if model.token_to_id(token) != options.get("id", model.token_to_id(token)):
      raise ValueError(f"{token!r} has not the id {options['id']} that its files give it")


def clip_state(file: pathlib.Path, vocab: dict) -> dict:
  """The content of the `tokenizer.json` that CLIP's `vocab.json` and `merges.txt` stand for.

  Source: CLIP, arXiv:2103.00020, sec. 2.4: lower-cased byte-pair encoding, words end in `</w>`.
  Differs: no repair of wrongly decoded text and of HTML entities before it, as in Hugging Face's.
  """
  for token in (START, END):
    if token not in vocab:
      raise unusable(file, f"it has no {token}, so it is not CLIP's")
  lines = read(file.with_name("merges.txt")).decode(errors="replace").splitlines()
  merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]

  model = tokenizers.Tokenizer(
    models.BPE(unk_token=END, continuing_subword_prefix="", end_of_word_suffix="</w>")
  )
  model.normalizer = normalizers.Sequence(
    [normalizers.NFC(), normalizers.Replace(tokenizers.Regex(r"\s+"), " "), normalizers.Lowercase()]
  )
  # The names of both tokens match here in other letters: in their own they never get this far.
  words = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
  )
  model.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(words), behavior="removed", invert=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  model.post_processor = processors.RobertaProcessing(
    (END, vocab[END]), (START, vocab[START]), trim_offsets=False, add_prefix_space=False
  )
  state = json.loads(model.to_str())
  state["model"] |= {"vocab": vocab, "merges": merges}
  return state


def train_tokenizer(
  captions: Iterable[str], path: str | pathlib.Path, vocab_size: int
) -> pathlib.Path:
  """Writes a `tokenizer.json` trained on `captions`, and returns its path.

  Lower-cased byte-level byte-pair encoding between CLIP's start and end tokens, padded with the
  end token; every text has ids, also one with words that no caption holds. The vocabulary is
  smaller than `vocab_size` where the captions have fewer words. The same captions give the same
  file.
  Differs: CLIP marks where words end, this where they begin, so that 256 symbols suffice to spell
    any text instead of 512 (ours: `vocab_size` is small).

  Args:
    path: a folder, which is made, or a file that ends in .json.
  Raises: InputError for no captions, too small a vocabulary, or a path that cannot be written.
  """
  if vocab_size < BYTES + 2:
    raise InputError(
      f"train_tokenizer: vocab_size={vocab_size} is below {BYTES + 2}, the bytes and the start and "
      "end tokens; give more"
    )
  captions = list(captions)
  if not any(caption.strip() for caption in captions):
    raise InputError(f"train_tokenizer: {len(captions)} captions without a word; give some")
  model = tokenizers.Tokenizer(models.BPE())
  model.normalizer = normalizers.Sequence(
    [
      normalizers.NFC(),
      normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
      normalizers.Strip(),
      normalizers.Lowercase(),
    ]
  )
  model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=[START, END],
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  model.train_from_iterator(captions, trainer)
  start, end = model.token_to_id(START), model.token_to_id(END)
  model.post_processor = processors.TemplateProcessing(
    single=f"{START} $A {END}", special_tokens=[(START, start), (END, end)]
  )
  model.enable_padding(pad_id=end, pad_token=END)
  path = pathlib.Path(path)
  file = path if path.suffix == ".json" else path / "tokenizer.json"
  write(file, model.to_str(pretty=True))
  return file


def write(file: pathlib.Path, text: str) -> None:
  """Writes `file` whole or not at all."""
  half = file.with_name(f"{file.name}.{os.getpid()}.tmp")
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
      half.write_text(text, encoding="utf-8")
      half.replace(file)
    finally:
      half.unlink(missing_ok=True)
  except OSError as error:
    raise InputError(
      f"train_tokenizer: {file} cannot be written: {error.strerror}; give another path"
    ) from error


def read(file: pathlib.Path) -> bytes:
  try:
    return file.read_bytes()
  except OSError as error:
    raise InputError(
      f"load_tokenizer: {file} cannot be read: {error.strerror}; give {KINDS}"
    ) from error


def read_json(file: pathlib.Path) -> dict:
  try:
    state = json.loads(read(file))
  except ValueError as error:  # of JSON and of its encoding
    raise unusable(file, error) from error
  if not isinstance(state, dict):
    raise unusable(file, "it does not hold a JSON object")
  return state


def unusable(file: pathlib.Path, reason: object) -> InputError:
  """The error for a file that is there but is not what its name says."""
  first_line = str(reason).strip().splitlines()[0]
  return InputError(
    f"load_tokenizer: {file} cannot be used: {first_line}; download it again, or give {KINDS}"
  )
