"""Signatures of a release: ed25519 (RFC 8032) over an in-toto statement in a DSSE envelope, by whoever has the private key.

    signatures/KEY_ID.dsse.json   {"payload", "payloadType", "signatures": [{"keyid", "sig"}]}
               KEY_ID.pub         the public key, so that a changed signature is noticed by those who do not know the key too

The statement names the release and the digest of its manifest.json, which has the digest of every other file. So a signature
is about the whole bundle, and it is not part of it: signing does not change a release's id, and several may sign.
KEY_ID is the sha256 of the public key (SubjectPublicKeyInfo, DER), in hex.

Whole is not trusted: anybody can sign. The keys that count are the .pub files of TUNESMITH_TRUSTED_KEYS, a directory or one
file (default: `trusted-keys` in TUNESMITH_HOME, where it is there). With them, `promote` and `rollback` refuse every release
that none of them signed.

Specifications: https://github.com/secure-systems-lab/dsse (protocol.md), https://in-toto.io/Statement/v1
"""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import GateRefused, NotFoundError, StoreError, UsageError
from tunesmith.store.files import canonical_json, explain_os_errors, json_text, read_json, write_bytes, write_text
from tunesmith.store.home import home

if TYPE_CHECKING:
    from tunesmith.releases.bundle import Release

FOLDER = "signatures"
ENVELOPE, PUBLIC = ".dsse.json", ".pub"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
SIGNING_KEY, PASSPHRASE, TRUSTED_KEYS = "TUNESMITH_SIGNING_KEY", "TUNESMITH_SIGNING_PASSPHRASE", "TUNESMITH_TRUSTED_KEYS"
MANIFEST = "manifest.json"


def new_key(path: Path) -> dict:
    """Write a private key (PKCS 8, PEM, only its owner may read it) and `path`.pub. Returns `{key, public_key, key_id}`.

    Raises:
        UsageError: one of the two files is there already.
    """
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    path = path.absolute()
    public_path = path.with_name(path.name + PUBLIC)
    for there in (path, public_path):
        if there.exists():
            raise UsageError("a key is never overwritten", where=str(there), why="what it signed could not be signed again",
                             fix="give another name")
    private = Ed25519PrivateKey.generate()
    text = private.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
    with explain_os_errors(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as f:
            f.write(text)
    write_bytes(public_path, _pem(private.public_key()))
    return {"key": str(path), "public_key": str(public_path), "key_id": key_id(private.public_key())}


def signing_key(given: str | Path | None = None) -> Any:
    """The private key of a PEM file, or of TUNESMITH_SIGNING_KEY, or None when neither names one.

    Raises:
        UsageError: no such file, or no ed25519 private key in it (or encrypted, without TUNESMITH_SIGNING_PASSPHRASE).
    """
    name = given or os.environ.get(SIGNING_KEY)
    if not name:
        return None
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    word = os.environ.get(PASSPHRASE)
    try:
        key = serialization.load_pem_private_key(Path(name).read_bytes(), word.encode() if word else None)
    except FileNotFoundError:
        raise UsageError("no such signing key", where=str(name), fix=f"tunesmith key new {name}") from None
    except Exception as error:  # ValueError, TypeError, UnsupportedAlgorithm, OSError: each says what is wrong with the file
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError("the signing key cannot be read", where=str(name), why=why,
                         fix=f"an ed25519 private key in PEM; {PASSPHRASE} for an encrypted one") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError("the signing key is not an ed25519 key", where=str(name), fix="tunesmith key new FILE")
    return key


def sign(release: Release, key: Any) -> str:
    """Write the signature into the bundle, in place of an older one of the same key. Returns the key's id."""
    public = key.public_key()
    made = key_id(public)
    envelope = _envelope(release, made, base64.b64encode(key.sign(pae(statement(release)))).decode())
    folder = release.path / FOLDER
    write_bytes(folder / (made + PUBLIC), _pem(public))  # first: an envelope without its key would be an error
    write_text(folder / (made + ENVELOPE), json_text(envelope))
    return made


def check(release: Release) -> list[str]:
    """Ids of the keys that signed this release. All that is in `signatures/` must be whole and about this manifest.

    Raises:
        StoreError: a signature that was changed, or is of another release, or a file that is none.
    """
    folder = release.path / FOLDER
    names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    ids = sorted({n.removesuffix(ENVELOPE).removesuffix(PUBLIC) for n in names})
    for one in ids:
        for name in (one + PUBLIC, one + ENVELOPE):
            if why := f"there is no {name} beside it" if name not in names else _wrong(release, one, name):
                at = folder / (name if name in names else next(n for n in names if n.startswith(one)))
                raise StoreError(f"a signature of release {release.path.name} is wrong", where=str(at), why=why,
                                 fix=f"sign it again, or delete {one}.* if you do not need it")
    return ids


def trusted_keys() -> dict[str, str] | None:
    """`{key id: name of its file}` of the keys that count here, or None where nobody said so.

    Raises:
        UsageError: TUNESMITH_TRUSTED_KEYS names nothing, or something that is no ed25519 public key.
    """
    named = os.environ.get(TRUSTED_KEYS)
    place = Path(named) if named else home() / "trusted-keys"
    if not named and not place.is_dir():
        return None
    files = sorted(place.glob(f"*{PUBLIC}")) if place.is_dir() else [place]
    if not files:
        raise UsageError("no trusted key", where=str(place), why=f"without a {PUBLIC} file in it no release can be promoted",
                         fix="put the public keys there, or remove it if releases need no signature")
    return {key_id(public_key(f)): f.name for f in files}


def public_key(path: Path) -> Any:
    """An ed25519 public key of a PEM file. Raises UsageError, or NotFoundError."""
    if not path.is_file():
        raise NotFoundError("no such public key", where=str(path), fix="tunesmith key new FILE writes FILE.pub")
    try:
        return _public(path.read_bytes())
    except ValueError as error:
        raise UsageError("not an ed25519 public key", where=str(path), why=str(error).splitlines()[0],
                         fix="give the .pub file, in PEM") from error


def require(release: Release, doing: str) -> list[str]:
    """Key ids that signed, when one of them is trusted or nobody said which are. Raises GateRefused otherwise."""
    signed, trusted = check(release), trusted_keys()
    if trusted is None or trusted.keys() & set(signed):
        return signed
    why = f"it is signed by {', '.join(k[:16] for k in signed)}, and trusted are" if signed else "it is not signed; trusted are"
    raise GateRefused(f"release {release.id} is not signed by a trusted key, so it was not {doing}", where=str(release.path),
                      why=f"{why} {', '.join(f'{name} ({k[:16]})' for k, name in trusted.items())}",
                      fix=f"tunesmith sign {release.id} --key KEY, by one who may")


def statement(release: Release) -> bytes:
    """The in-toto statement about a release, in canonical JSON."""
    digest = hashlib.sha256((release.path / MANIFEST).read_bytes()).hexdigest()
    return canonical_json({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": MANIFEST, "digest": {"sha256": digest}}],
        "predicateType": "https://in-toto.io/attestation/release/v0.1",
        "predicate": {"purl": f"pkg:generic/{release.manifest['name']}@{release.manifest['release_id']}"},
    }).encode()


def pae(payload: bytes) -> bytes:
    """What is signed: DSSE's pre-authentication encoding of payload and its type."""
    return b" ".join([b"DSSEv1", str(len(PAYLOAD_TYPE)).encode(), PAYLOAD_TYPE.encode(), str(len(payload)).encode(), payload])


def key_id(public: Any) -> str:
    from cryptography.hazmat.primitives import serialization as s

    return hashlib.sha256(public.public_bytes(s.Encoding.DER, s.PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _envelope(release: Release, keyid: str, signature: str) -> dict:
    return {"payload": base64.b64encode(statement(release)).decode(), "payloadType": PAYLOAD_TYPE,
            "signatures": [{"keyid": keyid, "sig": signature}]}


def _wrong(release: Release, one: str, name: str) -> str | None:
    """What is wrong with one of a signature's two files. Only `sig` is free in them: all else is compared byte for byte."""
    from cryptography.exceptions import InvalidSignature

    path = release.path / FOLDER / name
    try:
        public = _public((release.path / FOLDER / (one + PUBLIC)).read_bytes())
        if key_id(public) != one or _pem(public) != (release.path / FOLDER / (one + PUBLIC)).read_bytes():
            return "it is not the key that its name says"
        if name.endswith(PUBLIC):
            return None
        signature = read_json(path)["signatures"][0]["sig"]
        if path.read_text(encoding="utf-8") != json_text(_envelope(release, one, signature)):
            return "it is not about this release, or was changed"
        public.verify(base64.b64decode(signature, validate=True), pae(statement(release)))
        if base64.b64encode(base64.b64decode(signature)).decode() != signature:
            return "it was changed"
    except InvalidSignature:
        return "this key did not sign this release"
    except (ValueError, KeyError, IndexError, TypeError, StoreError) as error:
        return f"it is no signature: {str(error).splitlines()[0]}"
    return None


def _public(pem: bytes) -> Any:
    """Raises ValueError."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = serialization.load_pem_public_key(pem)
    except UnsupportedAlgorithm as error:
        raise ValueError(str(error)) from error
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("another kind of key")
    return key


def _pem(public: Any) -> bytes:
    from cryptography.hazmat.primitives import serialization as s

    return public.public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)
