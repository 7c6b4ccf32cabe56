from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PrefixMiss(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PREFIX_MISS_UNSPECIFIED: _ClassVar[PrefixMiss]
    PREFIX_MISS_TOO_SHORT: _ClassVar[PrefixMiss]
    PREFIX_MISS_UNSEEN: _ClassVar[PrefixMiss]
    PREFIX_MISS_SEEN_ONCE: _ClassVar[PrefixMiss]
    PREFIX_MISS_EVICTED: _ClassVar[PrefixMiss]

class RecomputeReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RECOMPUTE_REASON_UNSPECIFIED: _ClassVar[RecomputeReason]
    RECOMPUTE_REASON_INTERRUPTED: _ClassVar[RecomputeReason]
    RECOMPUTE_REASON_REWOUND: _ClassVar[RecomputeReason]
    RECOMPUTE_REASON_STATE_LOST: _ClassVar[RecomputeReason]

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_END_OF_TEXT: _ClassVar[FinishReason]
    FINISH_REASON_CANCELLED: _ClassVar[FinishReason]
    FINISH_REASON_SHUTDOWN: _ClassVar[FinishReason]
    FINISH_REASON_INTERRUPTED: _ClassVar[FinishReason]
    FINISH_REASON_PROMPT: _ClassVar[FinishReason]

class SessionResidence(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SESSION_RESIDENCE_UNSPECIFIED: _ClassVar[SessionResidence]
    SESSION_RESIDENCE_ACTIVE: _ClassVar[SessionResidence]
    SESSION_RESIDENCE_RESIDENT: _ClassVar[SessionResidence]
    SESSION_RESIDENCE_PARKED: _ClassVar[SessionResidence]
PREFIX_MISS_UNSPECIFIED: PrefixMiss
PREFIX_MISS_TOO_SHORT: PrefixMiss
PREFIX_MISS_UNSEEN: PrefixMiss
PREFIX_MISS_SEEN_ONCE: PrefixMiss
PREFIX_MISS_EVICTED: PrefixMiss
RECOMPUTE_REASON_UNSPECIFIED: RecomputeReason
RECOMPUTE_REASON_INTERRUPTED: RecomputeReason
RECOMPUTE_REASON_REWOUND: RecomputeReason
RECOMPUTE_REASON_STATE_LOST: RecomputeReason
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_LENGTH: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_END_OF_TEXT: FinishReason
FINISH_REASON_CANCELLED: FinishReason
FINISH_REASON_SHUTDOWN: FinishReason
FINISH_REASON_INTERRUPTED: FinishReason
FINISH_REASON_PROMPT: FinishReason
SESSION_RESIDENCE_UNSPECIFIED: SessionResidence
SESSION_RESIDENCE_ACTIVE: SessionResidence
SESSION_RESIDENCE_RESIDENT: SessionResidence
SESSION_RESIDENCE_PARKED: SessionResidence

class GenerateRequest(_message.Message):
    __slots__ = ("start", "cancel")
    START_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    start: Start
    cancel: Cancel
    def __init__(self, start: _Optional[_Union[Start, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ...) -> None: ...

class Start(_message.Message):
    __slots__ = ("model", "session_id", "keep", "text", "tokens", "sampling", "max_tokens", "stop", "expected_position", "request_id", "fork_of", "fork_position", "prompt_only")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_POSITION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    FORK_OF_FIELD_NUMBER: _ClassVar[int]
    FORK_POSITION_FIELD_NUMBER: _ClassVar[int]
    PROMPT_ONLY_FIELD_NUMBER: _ClassVar[int]
    model: str
    session_id: str
    keep: bool
    text: str
    tokens: TokenIds
    sampling: Sampling
    max_tokens: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    expected_position: int
    request_id: str
    fork_of: str
    fork_position: int
    prompt_only: bool
    def __init__(self, model: _Optional[str] = ..., session_id: _Optional[str] = ..., keep: _Optional[bool] = ..., text: _Optional[str] = ..., tokens: _Optional[_Union[TokenIds, _Mapping]] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., max_tokens: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., expected_position: _Optional[int] = ..., request_id: _Optional[str] = ..., fork_of: _Optional[str] = ..., fork_position: _Optional[int] = ..., prompt_only: _Optional[bool] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("temperature", "top_k", "top_p", "seed", "repetition_penalty", "presence_penalty", "frequency_penalty", "penalty_tokens")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PENALTY_TOKENS_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_k: int
    top_p: float
    seed: int
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    penalty_tokens: int
    def __init__(self, temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., seed: _Optional[int] = ..., repetition_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., penalty_tokens: _Optional[int] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("accepted", "delta", "finished", "error", "attached")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ATTACHED_FIELD_NUMBER: _ClassVar[int]
    accepted: Accepted
    delta: Delta
    finished: Finished
    error: Error
    attached: Attached
    def __init__(self, accepted: _Optional[_Union[Accepted, _Mapping]] = ..., delta: _Optional[_Union[Delta, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ..., attached: _Optional[_Union[Attached, _Mapping]] = ...) -> None: ...

class AttachRequest(_message.Message):
    __slots__ = ("session_id", "from_position")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    FROM_POSITION_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    from_position: int
    def __init__(self, session_id: _Optional[str] = ..., from_position: _Optional[int] = ...) -> None: ...

class Attached(_message.Message):
    __slots__ = ("session_id", "model", "position", "running")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    model: str
    position: int
    running: bool
    def __init__(self, session_id: _Optional[str] = ..., model: _Optional[str] = ..., position: _Optional[int] = ..., running: _Optional[bool] = ...) -> None: ...

class Accepted(_message.Message):
    __slots__ = ("session_id", "model", "position", "prompt_tokens", "resumed_tokens", "seed", "recomputed_tokens", "recompute_reason", "repeated", "prefix_tokens", "prefix_miss")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RESUMED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    RECOMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RECOMPUTE_REASON_FIELD_NUMBER: _ClassVar[int]
    REPEATED_FIELD_NUMBER: _ClassVar[int]
    PREFIX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_MISS_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    model: str
    position: int
    prompt_tokens: int
    resumed_tokens: int
    seed: int
    recomputed_tokens: int
    recompute_reason: RecomputeReason
    repeated: bool
    prefix_tokens: int
    prefix_miss: PrefixMiss
    def __init__(self, session_id: _Optional[str] = ..., model: _Optional[str] = ..., position: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., resumed_tokens: _Optional[int] = ..., seed: _Optional[int] = ..., recomputed_tokens: _Optional[int] = ..., recompute_reason: _Optional[_Union[RecomputeReason, str]] = ..., repeated: _Optional[bool] = ..., prefix_tokens: _Optional[int] = ..., prefix_miss: _Optional[_Union[PrefixMiss, str]] = ...) -> None: ...

class Delta(_message.Message):
    __slots__ = ("text", "ids", "position")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    text: str
    ids: _containers.RepeatedScalarFieldContainer[int]
    position: int
    def __init__(self, text: _Optional[str] = ..., ids: _Optional[_Iterable[int]] = ..., position: _Optional[int] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("reason", "position", "prompt_tokens", "generated_tokens", "time_to_first_token_seconds", "duration_seconds")
    REASON_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TIME_TO_FIRST_TOKEN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DURATION_SECONDS_FIELD_NUMBER: _ClassVar[int]
    reason: FinishReason
    position: int
    prompt_tokens: int
    generated_tokens: int
    time_to_first_token_seconds: float
    duration_seconds: float
    def __init__(self, reason: _Optional[_Union[FinishReason, str]] = ..., position: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., generated_tokens: _Optional[int] = ..., time_to_first_token_seconds: _Optional[float] = ..., duration_seconds: _Optional[float] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("code", "message", "retry_after_ms", "reason", "metadata")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    retry_after_ms: int
    reason: str
    metadata: _containers.ScalarMap[str, str]
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., retry_after_ms: _Optional[int] = ..., reason: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ...) -> None: ...

class Session(_message.Message):
    __slots__ = ("session_id", "model", "position", "residence", "state_bytes", "device", "idle_seconds", "name", "position_min")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    RESIDENCE_FIELD_NUMBER: _ClassVar[int]
    STATE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    IDLE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    POSITION_MIN_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    model: str
    position: int
    residence: SessionResidence
    state_bytes: int
    device: str
    idle_seconds: float
    name: str
    position_min: int
    def __init__(self, session_id: _Optional[str] = ..., model: _Optional[str] = ..., position: _Optional[int] = ..., residence: _Optional[_Union[SessionResidence, str]] = ..., state_bytes: _Optional[int] = ..., device: _Optional[str] = ..., idle_seconds: _Optional[float] = ..., name: _Optional[str] = ..., position_min: _Optional[int] = ...) -> None: ...

class ListSessionsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListSessionsResponse(_message.Message):
    __slots__ = ("sessions", "next_page_token")
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    sessions: _containers.RepeatedCompositeFieldContainer[Session]
    next_page_token: str
    def __init__(self, sessions: _Optional[_Iterable[_Union[Session, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetSessionRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    def __init__(self, session_id: _Optional[str] = ...) -> None: ...

class DeleteSessionRequest(_message.Message):
    __slots__ = ("session_id", "expected_position")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_POSITION_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    expected_position: int
    def __init__(self, session_id: _Optional[str] = ..., expected_position: _Optional[int] = ...) -> None: ...

class DeleteSessionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ForkSessionRequest(_message.Message):
    __slots__ = ("session_id", "position", "new_session_id", "expected_position", "request_id")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    NEW_SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_POSITION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    position: int
    new_session_id: str
    expected_position: int
    request_id: str
    def __init__(self, session_id: _Optional[str] = ..., position: _Optional[int] = ..., new_session_id: _Optional[str] = ..., expected_position: _Optional[int] = ..., request_id: _Optional[str] = ...) -> None: ...

class RewindSessionRequest(_message.Message):
    __slots__ = ("session_id", "position", "expected_position", "request_id")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_POSITION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    position: int
    expected_position: int
    request_id: str
    def __init__(self, session_id: _Optional[str] = ..., position: _Optional[int] = ..., expected_position: _Optional[int] = ..., request_id: _Optional[str] = ...) -> None: ...

class NameSessionRequest(_message.Message):
    __slots__ = ("session_id", "name", "expected_position")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_POSITION_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    name: str
    expected_position: int
    def __init__(self, session_id: _Optional[str] = ..., name: _Optional[str] = ..., expected_position: _Optional[int] = ...) -> None: ...

class MoveSessionRequest(_message.Message):
    __slots__ = ("session_id", "device", "expected_position")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_POSITION_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    device: str
    expected_position: int
    def __init__(self, session_id: _Optional[str] = ..., device: _Optional[str] = ..., expected_position: _Optional[int] = ...) -> None: ...

class ExportSessionRequest(_message.Message):
    __slots__ = ("session_id", "expected_position")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_POSITION_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    expected_position: int
    def __init__(self, session_id: _Optional[str] = ..., expected_position: _Optional[int] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class ImportSessionRequest(_message.Message):
    __slots__ = ("start", "chunk")
    START_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    start: ImportStart
    chunk: Chunk
    def __init__(self, start: _Optional[_Union[ImportStart, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ...) -> None: ...

class ImportStart(_message.Message):
    __slots__ = ("session_id", "request_id")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    request_id: str
    def __init__(self, session_id: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "family", "parameters", "state_bytes", "fingerprint", "vocab", "window", "classes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    STATE_BYTES_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    VOCAB_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    name: str
    family: str
    parameters: int
    state_bytes: int
    fingerprint: str
    vocab: int
    window: int
    classes: int
    def __init__(self, name: _Optional[str] = ..., family: _Optional[str] = ..., parameters: _Optional[int] = ..., state_bytes: _Optional[int] = ..., fingerprint: _Optional[str] = ..., vocab: _Optional[int] = ..., window: _Optional[int] = ..., classes: _Optional[int] = ...) -> None: ...

class Call(_message.Message):
    __slots__ = ("generate", "list_sessions", "get_session", "delete_session", "list_models", "attach", "fork_session", "rewind_session", "name_session", "export_session", "import_session", "move_session", "token")
    GENERATE_FIELD_NUMBER: _ClassVar[int]
    LIST_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    GET_SESSION_FIELD_NUMBER: _ClassVar[int]
    DELETE_SESSION_FIELD_NUMBER: _ClassVar[int]
    LIST_MODELS_FIELD_NUMBER: _ClassVar[int]
    ATTACH_FIELD_NUMBER: _ClassVar[int]
    FORK_SESSION_FIELD_NUMBER: _ClassVar[int]
    REWIND_SESSION_FIELD_NUMBER: _ClassVar[int]
    NAME_SESSION_FIELD_NUMBER: _ClassVar[int]
    EXPORT_SESSION_FIELD_NUMBER: _ClassVar[int]
    IMPORT_SESSION_FIELD_NUMBER: _ClassVar[int]
    MOVE_SESSION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    generate: GenerateRequest
    list_sessions: ListSessionsRequest
    get_session: GetSessionRequest
    delete_session: DeleteSessionRequest
    list_models: ListModelsRequest
    attach: AttachRequest
    fork_session: ForkSessionRequest
    rewind_session: RewindSessionRequest
    name_session: NameSessionRequest
    export_session: ExportSessionRequest
    import_session: ImportSessionRequest
    move_session: MoveSessionRequest
    token: str
    def __init__(self, generate: _Optional[_Union[GenerateRequest, _Mapping]] = ..., list_sessions: _Optional[_Union[ListSessionsRequest, _Mapping]] = ..., get_session: _Optional[_Union[GetSessionRequest, _Mapping]] = ..., delete_session: _Optional[_Union[DeleteSessionRequest, _Mapping]] = ..., list_models: _Optional[_Union[ListModelsRequest, _Mapping]] = ..., attach: _Optional[_Union[AttachRequest, _Mapping]] = ..., fork_session: _Optional[_Union[ForkSessionRequest, _Mapping]] = ..., rewind_session: _Optional[_Union[RewindSessionRequest, _Mapping]] = ..., name_session: _Optional[_Union[NameSessionRequest, _Mapping]] = ..., export_session: _Optional[_Union[ExportSessionRequest, _Mapping]] = ..., import_session: _Optional[_Union[ImportSessionRequest, _Mapping]] = ..., move_session: _Optional[_Union[MoveSessionRequest, _Mapping]] = ..., token: _Optional[str] = ...) -> None: ...

class CallResponse(_message.Message):
    __slots__ = ("list_sessions", "session", "delete_session", "list_models", "error", "chunk")
    LIST_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    DELETE_SESSION_FIELD_NUMBER: _ClassVar[int]
    LIST_MODELS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    list_sessions: ListSessionsResponse
    session: Session
    delete_session: DeleteSessionResponse
    list_models: ListModelsResponse
    error: Error
    chunk: Chunk
    def __init__(self, list_sessions: _Optional[_Union[ListSessionsResponse, _Mapping]] = ..., session: _Optional[_Union[Session, _Mapping]] = ..., delete_session: _Optional[_Union[DeleteSessionResponse, _Mapping]] = ..., list_models: _Optional[_Union[ListModelsResponse, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ...) -> None: ...
