from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Sampler(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SAMPLER_UNSPECIFIED: _ClassVar[Sampler]
    SAMPLER_PNDM: _ClassVar[Sampler]
    SAMPLER_LMS: _ClassVar[Sampler]
    SAMPLER_KLMS: _ClassVar[Sampler]
    SAMPLER_DDIM: _ClassVar[Sampler]
    SAMPLER_DDPM: _ClassVar[Sampler]
    SAMPLER_HEUN: _ClassVar[Sampler]
    SAMPLER_K_HEUN: _ClassVar[Sampler]
    SAMPLER_K_EULER: _ClassVar[Sampler]
    SAMPLER_K_EULER_ANCESTRAL: _ClassVar[Sampler]
    SAMPLER_DPM_SOLVER_MULTISTEP: _ClassVar[Sampler]
    SAMPLER_DPM_PLUS_PLUS_2M_KARRAS: _ClassVar[Sampler]
    SAMPLER_DPM_PLUS_PLUS_2M_SDE: _ClassVar[Sampler]
    SAMPLER_DPM_PLUS_PLUS_2M_SDE_KARRAS: _ClassVar[Sampler]
    SAMPLER_DPM_SINGLE: _ClassVar[Sampler]
    SAMPLER_DPM_2: _ClassVar[Sampler]
    SAMPLER_DPM_2_KARRAS: _ClassVar[Sampler]
    SAMPLER_DPM_2_ANCESTRAL: _ClassVar[Sampler]
    SAMPLER_DPM_2_ANCESTRAL_KARRAS: _ClassVar[Sampler]
    SAMPLER_DPM_PLUS_PLUS_SDE_KARRAS: _ClassVar[Sampler]
    SAMPLER_UNI_PC: _ClassVar[Sampler]
    SAMPLER_LCM: _ClassVar[Sampler]

class ImageEncoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    IMAGE_ENCODING_UNSPECIFIED: _ClassVar[ImageEncoding]
    IMAGE_ENCODING_JPEG: _ClassVar[ImageEncoding]
    IMAGE_ENCODING_PNG: _ClassVar[ImageEncoding]

class IpAdapterMethod(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    IP_ADAPTER_METHOD_UNSPECIFIED: _ClassVar[IpAdapterMethod]
    IP_ADAPTER_METHOD_FULL: _ClassVar[IpAdapterMethod]
    IP_ADAPTER_METHOD_STYLE: _ClassVar[IpAdapterMethod]
    IP_ADAPTER_METHOD_COMPOSITION: _ClassVar[IpAdapterMethod]

class IpAdapterMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    IP_ADAPTER_MODE_UNSPECIFIED: _ClassVar[IpAdapterMode]
    IP_ADAPTER_MODE_BASE: _ClassVar[IpAdapterMode]

class VariantSource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VARIANT_SOURCE_UNSPECIFIED: _ClassVar[VariantSource]
    VARIANT_SOURCE_BUILT: _ClassVar[VariantSource]
    VARIANT_SOURCE_DISK: _ClassVar[VariantSource]
    VARIANT_SOURCE_MEMORY: _ClassVar[VariantSource]

class SafetyCheck(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SAFETY_CHECK_UNSPECIFIED: _ClassVar[SafetyCheck]
    SAFETY_CHECK_NOT_CHECKED: _ClassVar[SafetyCheck]
    SAFETY_CHECK_PASSED: _ClassVar[SafetyCheck]
    SAFETY_CHECK_REMOVED: _ClassVar[SafetyCheck]
SAMPLER_UNSPECIFIED: Sampler
SAMPLER_PNDM: Sampler
SAMPLER_LMS: Sampler
SAMPLER_KLMS: Sampler
SAMPLER_DDIM: Sampler
SAMPLER_DDPM: Sampler
SAMPLER_HEUN: Sampler
SAMPLER_K_HEUN: Sampler
SAMPLER_K_EULER: Sampler
SAMPLER_K_EULER_ANCESTRAL: Sampler
SAMPLER_DPM_SOLVER_MULTISTEP: Sampler
SAMPLER_DPM_PLUS_PLUS_2M_KARRAS: Sampler
SAMPLER_DPM_PLUS_PLUS_2M_SDE: Sampler
SAMPLER_DPM_PLUS_PLUS_2M_SDE_KARRAS: Sampler
SAMPLER_DPM_SINGLE: Sampler
SAMPLER_DPM_2: Sampler
SAMPLER_DPM_2_KARRAS: Sampler
SAMPLER_DPM_2_ANCESTRAL: Sampler
SAMPLER_DPM_2_ANCESTRAL_KARRAS: Sampler
SAMPLER_DPM_PLUS_PLUS_SDE_KARRAS: Sampler
SAMPLER_UNI_PC: Sampler
SAMPLER_LCM: Sampler
IMAGE_ENCODING_UNSPECIFIED: ImageEncoding
IMAGE_ENCODING_JPEG: ImageEncoding
IMAGE_ENCODING_PNG: ImageEncoding
IP_ADAPTER_METHOD_UNSPECIFIED: IpAdapterMethod
IP_ADAPTER_METHOD_FULL: IpAdapterMethod
IP_ADAPTER_METHOD_STYLE: IpAdapterMethod
IP_ADAPTER_METHOD_COMPOSITION: IpAdapterMethod
IP_ADAPTER_MODE_UNSPECIFIED: IpAdapterMode
IP_ADAPTER_MODE_BASE: IpAdapterMode
VARIANT_SOURCE_UNSPECIFIED: VariantSource
VARIANT_SOURCE_BUILT: VariantSource
VARIANT_SOURCE_DISK: VariantSource
VARIANT_SOURCE_MEMORY: VariantSource
SAFETY_CHECK_UNSPECIFIED: SafetyCheck
SAFETY_CHECK_NOT_CHECKED: SafetyCheck
SAFETY_CHECK_PASSED: SafetyCheck
SAFETY_CHECK_REMOVED: SafetyCheck

class Seed(_message.Message):
    __slots__ = ("value",)
    VALUE_FIELD_NUMBER: _ClassVar[int]
    value: int
    def __init__(self, value: _Optional[int] = ...) -> None: ...

class TransferImages(_message.Message):
    __slots__ = ("images",)
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, images: _Optional[_Iterable[bytes]] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("engine", "prompt", "prompt_2", "negative_prompt", "negative_prompt_2", "cfg_scale", "steps", "width", "height", "num_images", "seed", "seeds", "sampler", "image_encoding", "init_image", "strength", "mask_image", "outpainting", "inpaint_full_res", "inpaint_full_res_padding", "checkpoint", "vae", "loras", "textual_inversions", "clip_skip", "controlnet", "controlnet_image", "controlnet_preprocess", "controlnet_conditioning_scale", "controlnet_early_stop", "high_noise_frac", "use_refiner", "style_preset", "ip_adapter_image", "ip_adapter_mask_image", "ip_adapter_method", "ip_adapter_mode", "ip_adapter_scale", "transfer_images", "ip_adapter")
    class LorasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class TextualInversionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class TransferImagesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: TransferImages
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[TransferImages, _Mapping]] = ...) -> None: ...
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_2_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_PROMPT_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_PROMPT_2_FIELD_NUMBER: _ClassVar[int]
    CFG_SCALE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    NUM_IMAGES_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SEEDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLER_FIELD_NUMBER: _ClassVar[int]
    IMAGE_ENCODING_FIELD_NUMBER: _ClassVar[int]
    INIT_IMAGE_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    MASK_IMAGE_FIELD_NUMBER: _ClassVar[int]
    OUTPAINTING_FIELD_NUMBER: _ClassVar[int]
    INPAINT_FULL_RES_FIELD_NUMBER: _ClassVar[int]
    INPAINT_FULL_RES_PADDING_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    VAE_FIELD_NUMBER: _ClassVar[int]
    LORAS_FIELD_NUMBER: _ClassVar[int]
    TEXTUAL_INVERSIONS_FIELD_NUMBER: _ClassVar[int]
    CLIP_SKIP_FIELD_NUMBER: _ClassVar[int]
    CONTROLNET_FIELD_NUMBER: _ClassVar[int]
    CONTROLNET_IMAGE_FIELD_NUMBER: _ClassVar[int]
    CONTROLNET_PREPROCESS_FIELD_NUMBER: _ClassVar[int]
    CONTROLNET_CONDITIONING_SCALE_FIELD_NUMBER: _ClassVar[int]
    CONTROLNET_EARLY_STOP_FIELD_NUMBER: _ClassVar[int]
    HIGH_NOISE_FRAC_FIELD_NUMBER: _ClassVar[int]
    USE_REFINER_FIELD_NUMBER: _ClassVar[int]
    STYLE_PRESET_FIELD_NUMBER: _ClassVar[int]
    IP_ADAPTER_IMAGE_FIELD_NUMBER: _ClassVar[int]
    IP_ADAPTER_MASK_IMAGE_FIELD_NUMBER: _ClassVar[int]
    IP_ADAPTER_METHOD_FIELD_NUMBER: _ClassVar[int]
    IP_ADAPTER_MODE_FIELD_NUMBER: _ClassVar[int]
    IP_ADAPTER_SCALE_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_IMAGES_FIELD_NUMBER: _ClassVar[int]
    IP_ADAPTER_FIELD_NUMBER: _ClassVar[int]
    engine: str
    prompt: str
    prompt_2: str
    negative_prompt: str
    negative_prompt_2: str
    cfg_scale: float
    steps: int
    width: int
    height: int
    num_images: int
    seed: int
    seeds: _containers.RepeatedCompositeFieldContainer[Seed]
    sampler: Sampler
    image_encoding: ImageEncoding
    init_image: bytes
    strength: float
    mask_image: bytes
    outpainting: bool
    inpaint_full_res: bool
    inpaint_full_res_padding: int
    checkpoint: str
    vae: str
    loras: _containers.ScalarMap[str, float]
    textual_inversions: _containers.ScalarMap[str, str]
    clip_skip: int
    controlnet: str
    controlnet_image: bytes
    controlnet_preprocess: bool
    controlnet_conditioning_scale: float
    controlnet_early_stop: float
    high_noise_frac: float
    use_refiner: bool
    style_preset: str
    ip_adapter_image: bytes
    ip_adapter_mask_image: bytes
    ip_adapter_method: IpAdapterMethod
    ip_adapter_mode: IpAdapterMode
    ip_adapter_scale: float
    transfer_images: _containers.MessageMap[str, TransferImages]
    ip_adapter: str
    def __init__(self, engine: _Optional[str] = ..., prompt: _Optional[str] = ..., prompt_2: _Optional[str] = ..., negative_prompt: _Optional[str] = ..., negative_prompt_2: _Optional[str] = ..., cfg_scale: _Optional[float] = ..., steps: _Optional[int] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., num_images: _Optional[int] = ..., seed: _Optional[int] = ..., seeds: _Optional[_Iterable[_Union[Seed, _Mapping]]] = ..., sampler: _Optional[_Union[Sampler, str]] = ..., image_encoding: _Optional[_Union[ImageEncoding, str]] = ..., init_image: _Optional[bytes] = ..., strength: _Optional[float] = ..., mask_image: _Optional[bytes] = ..., outpainting: _Optional[bool] = ..., inpaint_full_res: _Optional[bool] = ..., inpaint_full_res_padding: _Optional[int] = ..., checkpoint: _Optional[str] = ..., vae: _Optional[str] = ..., loras: _Optional[_Mapping[str, float]] = ..., textual_inversions: _Optional[_Mapping[str, str]] = ..., clip_skip: _Optional[int] = ..., controlnet: _Optional[str] = ..., controlnet_image: _Optional[bytes] = ..., controlnet_preprocess: _Optional[bool] = ..., controlnet_conditioning_scale: _Optional[float] = ..., controlnet_early_stop: _Optional[float] = ..., high_noise_frac: _Optional[float] = ..., use_refiner: _Optional[bool] = ..., style_preset: _Optional[str] = ..., ip_adapter_image: _Optional[bytes] = ..., ip_adapter_mask_image: _Optional[bytes] = ..., ip_adapter_method: _Optional[_Union[IpAdapterMethod, str]] = ..., ip_adapter_mode: _Optional[_Union[IpAdapterMode, str]] = ..., ip_adapter_scale: _Optional[float] = ..., transfer_images: _Optional[_Mapping[str, TransferImages]] = ..., ip_adapter: _Optional[str] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("request_id", "images", "effective", "timings", "notices", "variants")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    EFFECTIVE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    NOTICES_FIELD_NUMBER: _ClassVar[int]
    VARIANTS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    images: _containers.RepeatedCompositeFieldContainer[Image]
    effective: EffectiveParameters
    timings: Timings
    notices: _containers.RepeatedScalarFieldContainer[str]
    variants: _containers.RepeatedCompositeFieldContainer[Variant]
    def __init__(self, request_id: _Optional[str] = ..., images: _Optional[_Iterable[_Union[Image, _Mapping]]] = ..., effective: _Optional[_Union[EffectiveParameters, _Mapping]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., notices: _Optional[_Iterable[str]] = ..., variants: _Optional[_Iterable[_Union[Variant, _Mapping]]] = ...) -> None: ...

class Variant(_message.Message):
    __slots__ = ("model", "graph", "source", "build_ms", "load_ms")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    GRAPH_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    BUILD_MS_FIELD_NUMBER: _ClassVar[int]
    LOAD_MS_FIELD_NUMBER: _ClassVar[int]
    model: str
    graph: str
    source: VariantSource
    build_ms: float
    load_ms: float
    def __init__(self, model: _Optional[str] = ..., graph: _Optional[str] = ..., source: _Optional[_Union[VariantSource, str]] = ..., build_ms: _Optional[float] = ..., load_ms: _Optional[float] = ...) -> None: ...

class Image(_message.Message):
    __slots__ = ("data", "encoding", "width", "height", "index", "seed", "safety_check", "safety_score")
    DATA_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SAFETY_CHECK_FIELD_NUMBER: _ClassVar[int]
    SAFETY_SCORE_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    encoding: ImageEncoding
    width: int
    height: int
    index: int
    seed: int
    safety_check: SafetyCheck
    safety_score: float
    def __init__(self, data: _Optional[bytes] = ..., encoding: _Optional[_Union[ImageEncoding, str]] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., index: _Optional[int] = ..., seed: _Optional[int] = ..., safety_check: _Optional[_Union[SafetyCheck, str]] = ..., safety_score: _Optional[float] = ...) -> None: ...

class EffectiveParameters(_message.Message):
    __slots__ = ("engine", "prompt", "negative_prompt", "cfg_scale", "steps", "evaluations", "width", "height", "seeds", "sampler", "image_encoding", "models", "prompt_2", "negative_prompt_2", "high_noise_frac", "strength", "clip_skip", "style_preset", "outpainting", "inpaint_full_res", "inpaint_full_res_padding", "checkpoint", "vae", "loras", "textual_inversions", "controlnet", "controlnet_preprocessor", "controlnet_conditioning_scale", "controlnet_early_stop", "ip_adapter", "ip_adapter_method", "ip_adapter_scale", "transfer_images")
    class LorasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class TextualInversionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class TransferImagesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_PROMPT_FIELD_NUMBER: _ClassVar[int]
    CFG_SCALE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    EVALUATIONS_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    SEEDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLER_FIELD_NUMBER: _ClassVar[int]
    IMAGE_ENCODING_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_2_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_PROMPT_2_FIELD_NUMBER: _ClassVar[int]
    HIGH_NOISE_FRAC_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    CLIP_SKIP_FIELD_NUMBER: _ClassVar[int]
    STYLE_PRESET_FIELD_NUMBER: _ClassVar[int]
    OUTPAINTING_FIELD_NUMBER: _ClassVar[int]
    INPAINT_FULL_RES_FIELD_NUMBER: _ClassVar[int]
    INPAINT_FULL_RES_PADDING_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    VAE_FIELD_NUMBER: _ClassVar[int]
    LORAS_FIELD_NUMBER: _ClassVar[int]
    TEXTUAL_INVERSIONS_FIELD_NUMBER: _ClassVar[int]
    CONTROLNET_FIELD_NUMBER: _ClassVar[int]
    CONTROLNET_PREPROCESSOR_FIELD_NUMBER: _ClassVar[int]
    CONTROLNET_CONDITIONING_SCALE_FIELD_NUMBER: _ClassVar[int]
    CONTROLNET_EARLY_STOP_FIELD_NUMBER: _ClassVar[int]
    IP_ADAPTER_FIELD_NUMBER: _ClassVar[int]
    IP_ADAPTER_METHOD_FIELD_NUMBER: _ClassVar[int]
    IP_ADAPTER_SCALE_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_IMAGES_FIELD_NUMBER: _ClassVar[int]
    engine: str
    prompt: str
    negative_prompt: str
    cfg_scale: float
    steps: int
    evaluations: int
    width: int
    height: int
    seeds: _containers.RepeatedScalarFieldContainer[int]
    sampler: Sampler
    image_encoding: ImageEncoding
    models: _containers.RepeatedScalarFieldContainer[str]
    prompt_2: str
    negative_prompt_2: str
    high_noise_frac: float
    strength: float
    clip_skip: int
    style_preset: str
    outpainting: bool
    inpaint_full_res: bool
    inpaint_full_res_padding: int
    checkpoint: str
    vae: str
    loras: _containers.ScalarMap[str, float]
    textual_inversions: _containers.ScalarMap[str, str]
    controlnet: str
    controlnet_preprocessor: str
    controlnet_conditioning_scale: float
    controlnet_early_stop: float
    ip_adapter: str
    ip_adapter_method: IpAdapterMethod
    ip_adapter_scale: float
    transfer_images: _containers.ScalarMap[str, int]
    def __init__(self, engine: _Optional[str] = ..., prompt: _Optional[str] = ..., negative_prompt: _Optional[str] = ..., cfg_scale: _Optional[float] = ..., steps: _Optional[int] = ..., evaluations: _Optional[int] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., seeds: _Optional[_Iterable[int]] = ..., sampler: _Optional[_Union[Sampler, str]] = ..., image_encoding: _Optional[_Union[ImageEncoding, str]] = ..., models: _Optional[_Iterable[str]] = ..., prompt_2: _Optional[str] = ..., negative_prompt_2: _Optional[str] = ..., high_noise_frac: _Optional[float] = ..., strength: _Optional[float] = ..., clip_skip: _Optional[int] = ..., style_preset: _Optional[str] = ..., outpainting: _Optional[bool] = ..., inpaint_full_res: _Optional[bool] = ..., inpaint_full_res_padding: _Optional[int] = ..., checkpoint: _Optional[str] = ..., vae: _Optional[str] = ..., loras: _Optional[_Mapping[str, float]] = ..., textual_inversions: _Optional[_Mapping[str, str]] = ..., controlnet: _Optional[str] = ..., controlnet_preprocessor: _Optional[str] = ..., controlnet_conditioning_scale: _Optional[float] = ..., controlnet_early_stop: _Optional[float] = ..., ip_adapter: _Optional[str] = ..., ip_adapter_method: _Optional[_Union[IpAdapterMethod, str]] = ..., ip_adapter_scale: _Optional[float] = ..., transfer_images: _Optional[_Mapping[str, int]] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("queue_ms", "conditioning_ms", "denoising_ms", "decoding_ms", "encoding_ms", "total_ms", "adapters_ms")
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    CONDITIONING_MS_FIELD_NUMBER: _ClassVar[int]
    DENOISING_MS_FIELD_NUMBER: _ClassVar[int]
    DECODING_MS_FIELD_NUMBER: _ClassVar[int]
    ENCODING_MS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_MS_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_MS_FIELD_NUMBER: _ClassVar[int]
    queue_ms: float
    conditioning_ms: float
    denoising_ms: float
    decoding_ms: float
    encoding_ms: float
    total_ms: float
    adapters_ms: float
    def __init__(self, queue_ms: _Optional[float] = ..., conditioning_ms: _Optional[float] = ..., denoising_ms: _Optional[float] = ..., decoding_ms: _Optional[float] = ..., encoding_ms: _Optional[float] = ..., total_ms: _Optional[float] = ..., adapters_ms: _Optional[float] = ...) -> None: ...

class GenerateStreamRequest(_message.Message):
    __slots__ = ("request", "preview_interval")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    request: GenerateRequest
    preview_interval: int
    def __init__(self, request: _Optional[_Union[GenerateRequest, _Mapping]] = ..., preview_interval: _Optional[int] = ...) -> None: ...

class GenerateStreamResponse(_message.Message):
    __slots__ = ("accepted", "progress", "preview", "image", "summary", "preparing")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    PREPARING_FIELD_NUMBER: _ClassVar[int]
    accepted: Accepted
    progress: Progress
    preview: Preview
    image: Image
    summary: Summary
    preparing: Preparing
    def __init__(self, accepted: _Optional[_Union[Accepted, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., preview: _Optional[_Union[Preview, _Mapping]] = ..., image: _Optional[_Union[Image, _Mapping]] = ..., summary: _Optional[_Union[Summary, _Mapping]] = ..., preparing: _Optional[_Union[Preparing, _Mapping]] = ...) -> None: ...

class Preparing(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, models: _Optional[_Iterable[str]] = ...) -> None: ...

class Accepted(_message.Message):
    __slots__ = ("request_id", "effective", "queue_position", "notices")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EFFECTIVE_FIELD_NUMBER: _ClassVar[int]
    QUEUE_POSITION_FIELD_NUMBER: _ClassVar[int]
    NOTICES_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    effective: EffectiveParameters
    queue_position: int
    notices: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, request_id: _Optional[str] = ..., effective: _Optional[_Union[EffectiveParameters, _Mapping]] = ..., queue_position: _Optional[int] = ..., notices: _Optional[_Iterable[str]] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("index", "evaluation", "evaluations")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    EVALUATIONS_FIELD_NUMBER: _ClassVar[int]
    index: int
    evaluation: int
    evaluations: int
    def __init__(self, index: _Optional[int] = ..., evaluation: _Optional[int] = ..., evaluations: _Optional[int] = ...) -> None: ...

class Preview(_message.Message):
    __slots__ = ("index", "evaluation", "data")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    index: int
    evaluation: int
    data: bytes
    def __init__(self, index: _Optional[int] = ..., evaluation: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Summary(_message.Message):
    __slots__ = ("timings", "variants")
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    VARIANTS_FIELD_NUMBER: _ClassVar[int]
    timings: Timings
    variants: _containers.RepeatedCompositeFieldContainer[Variant]
    def __init__(self, timings: _Optional[_Union[Timings, _Mapping]] = ..., variants: _Optional[_Iterable[_Union[Variant, _Mapping]]] = ...) -> None: ...

class GenerateBatchRequest(_message.Message):
    __slots__ = ("id", "generate", "cancel")
    ID_FIELD_NUMBER: _ClassVar[int]
    GENERATE_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    id: str
    generate: GenerateRequest
    cancel: bool
    def __init__(self, id: _Optional[str] = ..., generate: _Optional[_Union[GenerateRequest, _Mapping]] = ..., cancel: _Optional[bool] = ...) -> None: ...

class GenerateBatchResponse(_message.Message):
    __slots__ = ("id", "accepted", "progress", "image", "summary", "failure")
    ID_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    id: str
    accepted: Accepted
    progress: Progress
    image: Image
    summary: Summary
    failure: Failure
    def __init__(self, id: _Optional[str] = ..., accepted: _Optional[_Union[Accepted, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., image: _Optional[_Union[Image, _Mapping]] = ..., summary: _Optional[_Union[Summary, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("code", "message", "violations")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    VIOLATIONS_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    violations: _containers.RepeatedCompositeFieldContainer[Violation]
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., violations: _Optional[_Iterable[_Union[Violation, _Mapping]]] = ...) -> None: ...

class Violation(_message.Message):
    __slots__ = ("field", "description")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    field: str
    description: str
    def __init__(self, field: _Optional[str] = ..., description: _Optional[str] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: GenerateRequest
    def __init__(self, request: _Optional[_Union[GenerateRequest, _Mapping]] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("effective", "executions", "estimated_ms", "nearest_size", "violations", "unmeasured", "notices")
    class ExecutionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    EFFECTIVE_FIELD_NUMBER: _ClassVar[int]
    EXECUTIONS_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_MS_FIELD_NUMBER: _ClassVar[int]
    NEAREST_SIZE_FIELD_NUMBER: _ClassVar[int]
    VIOLATIONS_FIELD_NUMBER: _ClassVar[int]
    UNMEASURED_FIELD_NUMBER: _ClassVar[int]
    NOTICES_FIELD_NUMBER: _ClassVar[int]
    effective: EffectiveParameters
    executions: _containers.ScalarMap[str, int]
    estimated_ms: float
    nearest_size: Size
    violations: _containers.RepeatedCompositeFieldContainer[Violation]
    unmeasured: _containers.RepeatedScalarFieldContainer[str]
    notices: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, effective: _Optional[_Union[EffectiveParameters, _Mapping]] = ..., executions: _Optional[_Mapping[str, int]] = ..., estimated_ms: _Optional[float] = ..., nearest_size: _Optional[_Union[Size, _Mapping]] = ..., violations: _Optional[_Iterable[_Union[Violation, _Mapping]]] = ..., unmeasured: _Optional[_Iterable[str]] = ..., notices: _Optional[_Iterable[str]] = ...) -> None: ...

class Size(_message.Message):
    __slots__ = ("width", "height")
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    width: int
    height: int
    def __init__(self, width: _Optional[int] = ..., height: _Optional[int] = ...) -> None: ...
