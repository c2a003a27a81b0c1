"""The TensorFlow operators that a SavedModel may hold without `--trust`: those that only compute, by exact name.

A list of dangerous operators was tried first: it missed `ImmutableConst`, `TFRecordDataset` and others, and each
release of TensorFlow adds new ones. An operator that is not listed may be harmless, but this is not known. The names
are those of TensorFlow's own registry (`tests/attacks/tensorflow_operators.txt`).
"""

# Loading and calling: variables, constants, functions, branches.
_STRUCTURE = """
Assert AssignAddVariableOp AssignSubVariableOp AssignVariableOp Case Const DisableCopyOnRead EnsureShape Enter Exit
Fill FakeParam Identity IdentityN If LoopCond Merge NextIteration NoOp PartitionedCall Placeholder
PlaceholderWithDefault PreventGradient ReadVariableOp RefEnter RefExit RefIdentity RefMerge RefSwitch ResourceGather
Snapshot StatefulPartitionedCall StatelessCase StatelessIf StatelessWhile StopGradient Switch VarHandleOp
VarIsInitializedOp Variable VariableShape VariableV2 While Assign
"""
# Operators that save and restore the variables beside the program, and that form the file's name.
SAVING = frozenset(["SaveV2", "MergeV2Checkpoints", "RestoreV2", "ShardedFilename"])
_NAMES_OF_FILES = "StringJoin StaticRegexFullMatch Select Pack"
_MATHEMATICS = """
Abs AccumulateNV2 Acos Acosh Add AddN AddV2 All Angle Any ApproximateEqual ArgMax ArgMin Asin Asinh Atan Atan2 Atanh
BesselI0 BesselI0e BesselI1 BesselI1e Betainc BitwiseAnd BitwiseOr BitwiseXor Bucketize Cast Ceil ClipByValue Complex
ComplexAbs Conj Cos Cosh Cross Cumprod Cumsum CumulativeLogsumexp Digamma Div DivNoNan Einsum Equal Erf Erfc Erfinv
EuclideanNorm Exp Expm1 Floor FloorDiv FloorMod Greater GreaterEqual Igamma Igammac Imag Inv Invert IsFinite IsInf
IsNan LeftShift Less LessEqual Lgamma LinSpace Log Log1p LogicalAnd LogicalNot LogicalOr MatMul BatchMatMul
BatchMatMulV2 BatchMatMulV3 Max Maximum Mean Min Minimum Mod Mul MulNoNan Ndtri Neg NextAfter NotEqual Polygamma Pow
Prod Range Real RealDiv Reciprocal RightShift Rint Round Rsqrt SegmentMax SegmentMean SegmentMin SegmentProd
SegmentSum SelectV2 Sigmoid Sign Sin Sinh Sqrt Square SquaredDifference Sub Sum Tan Tanh TruncateDiv TruncateMod
UnsortedSegmentMax UnsortedSegmentMin UnsortedSegmentProd UnsortedSegmentSum Xdivy Xlogy Xlog1py Zeta SparseToDense
"""
_ARRAYS = """
BatchToSpace BatchToSpaceND Bitcast BroadcastArgs BroadcastTo Concat ConcatOffset ConcatV2 DepthToSpace Diag DiagPart
DynamicPartition DynamicStitch ExpandDims ExtractImagePatches Gather GatherNd GatherV2 InvertPermutation ListDiff
MatrixBandPart MatrixDiag MatrixDiagPart MatrixDiagPartV2 MatrixDiagPartV3 MatrixDiagV2 MatrixDiagV3 MatrixSetDiag
MatrixSetDiagV2 MatrixSetDiagV3 MirrorPad OneHot OnesLike Pad PadV2 ParallelDynamicStitch Rank Reshape Reverse
ReverseSequence ReverseV2 Roll ScatterNd Shape ShapeN Size Slice SpaceToBatch SpaceToBatchND
SpaceToDepth Split SplitV Squeeze StridedSlice TensorScatterAdd TensorScatterMax TensorScatterMin TensorScatterSub
TensorScatterUpdate Tile TopK TopKV2 Transpose Unique UniqueV2 Unpack Where ZerosLike LowerBound UpperBound
TensorArrayV3 TensorArrayReadV3 TensorArrayWriteV3 TensorArrayGatherV3 TensorArrayScatterV3 TensorArraySizeV3
TensorArrayCloseV3 TensorListFromTensor TensorListGetItem TensorListLength TensorListReserve TensorListSetItem
TensorListStack TensorListElementShape TensorListGather TensorListPopBack TensorListPushBack TensorListResize
TensorListScatter TensorListSplit EmptyTensorList
"""
_NETWORKS = """
AvgPool AvgPool3D BatchNormWithGlobalNormalization BiasAdd BiasAddV1 BlockLSTM BlockLSTMV2 Conv2D Conv2DBackpropInput
Conv3D Conv3DBackpropInputV2 CudnnRNN CudnnRNNV3 DepthwiseConv2dNative Dilation2D Elu FakeQuantWithMinMaxArgs
FakeQuantWithMinMaxVars FakeQuantWithMinMaxVarsPerChannel FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3
GRUBlockCell InTopK InTopKV2 L2Loss LRN LSTMBlockCell LeakyRelu LogSoftmax MaxPool MaxPool3D MaxPoolV2
MaxPoolWithArgmax Relu Relu6 Selu Softmax SoftmaxCrossEntropyWithLogits Softplus Softsign
SparseSoftmaxCrossEntropyWithLogits QuantizeV2 Dequantize QuantizeAndDequantizeV2 QuantizeAndDequantizeV3
QuantizeAndDequantizeV4
"""
_SIGNALS_AND_PICTURES = """
AdjustContrastv2 AdjustHue AdjustSaturation CombinedNonMaxSuppression CropAndResize FFT FFT2D FFT3D HSVToRGB IFFT
IFFT2D IRFFT IRFFT2D ImageProjectiveTransformV2 ImageProjectiveTransformV3 NonMaxSuppression NonMaxSuppressionV2
NonMaxSuppressionV3 NonMaxSuppressionV4 NonMaxSuppressionV5 RFFT RFFT2D RGBToHSV ResizeArea ResizeBicubic
ResizeBilinear ResizeNearestNeighbor Cholesky MatrixDeterminant MatrixInverse MatrixSolve MatrixTriangularSolve Qr Svd
"""
_CHANCE = """
Multinomial RandomStandardNormal RandomUniform RandomUniformInt StatelessRandomGetAlg StatelessRandomGetKeyCounter
StatelessRandomNormal StatelessRandomNormalV2 StatelessRandomUniform StatelessRandomUniformV2 TruncatedNormal
"""

COMPUTING = frozenset(
    f"{_STRUCTURE} {_NAMES_OF_FILES} {_MATHEMATICS} {_ARRAYS} {_NETWORKS} {_SIGNALS_AND_PICTURES} {_CHANCE}".split()
)
