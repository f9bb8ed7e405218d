"""The passes that come with onnxc, in pipeline order: the table of contents of this folder."""

from .columns_as_products import ColumnsAsProducts
from .equalize_layers import EqualizeLayers
from .factor_conv import FactorConv
from .factor_matmul import FactorMatmul
from .flush_subnormals import FlushSubnormals
from .fold_scaler import FoldScaler
from .fold_sparse import FoldSparse
from .integer_convolutions import IntegerConvolutions
from .merge_duplicates import MergeDuplicates
from .plain_gelu import PlainGelu
from .plain_labels import PlainLabels
from .plain_linears import PlainLinears
from .plain_normalization import PlainNormalization
from .prune_channels import PruneChannels
from .prune_weights import PruneWeights
from .quantize_decode import QuantizeDecode
from .quantize_dynamic import QuantizeDynamic
from .quantize_embedding import QuantizeEmbedding
from .quantize_lstm import QuantizeLstm
from .quantize_static import QuantizeStatic
from .raise_opset import RaiseOpset
from .recover import Recover
from .simplify import Simplify
from .smooth_activations import SmoothActivations
from .store_codebook import StoreCodebook
from .store_float16 import StoreFloat16
from .store_int8 import StoreInt8
from .store_low_bit import StoreLowBit
from .store_trellis import StoreTrellis
from .strip_debug import StripDebug
from .strip_defaults import StripDefaults
from .strip_shapes import StripShapes
from .strip_trees import StripTrees
from .sums_as_products import SumsAsProducts
from .trees_as_tensors import TreesAsTensors
from .unfold_frames import UnfoldFrames

PASSES: tuple[type, ...] = (
    Simplify,
    UnfoldFrames,
    PlainLinears,
    PlainNormalization,
    PlainGelu,
    SumsAsProducts,
    ColumnsAsProducts,
    PlainLabels,
    TreesAsTensors,
    StripTrees,
    StripDebug,
    RaiseOpset,
    FlushSubnormals,
    MergeDuplicates,
    PruneChannels,
    FactorMatmul,
    FactorConv,
    PruneWeights,
    EqualizeLayers,
    SmoothActivations,
    QuantizeStatic,
    QuantizeDynamic,
    QuantizeDecode,
    QuantizeLstm,
    QuantizeEmbedding,
    StoreInt8,
    StoreLowBit,
    StoreCodebook,
    StoreTrellis,
    StoreFloat16,
    FoldSparse,
    IntegerConvolutions,
    FoldScaler,
    StripDefaults,
    StripShapes,
    Recover,
)
