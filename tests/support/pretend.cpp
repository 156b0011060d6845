// A device whose memory is the CPU's, but whose tensors don't meet the CPU's, as a card's don't.
//
// Every operation without a kernel of its own comes to `fallback`, which calls the CPU's on
// tensors over the same memory.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/extension.h>

#include <map>
#include <set>

using namespace at;

namespace {

const Device kHere(DeviceType::PrivateUse1, 0);

struct HereAllocator final : Allocator {
  DataPtr allocate(size_t bytes) override {
    void* memory = bytes ? c10::alloc_cpu(bytes) : nullptr;
    return {memory, memory, &c10::free_cpu, kHere};
  }
  DeleterFnPtr raw_deleter() const override { return &c10::free_cpu; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    memcpy(to, from, bytes);
  }
} allocator;
REGISTER_ALLOCATOR(DeviceType::PrivateUse1, &allocator);

Stream only_stream() { return Stream(Stream::DEFAULT, kHere); }

// One device, one stream, and events that are over at once.
struct Guard : c10::impl::NoOpDeviceGuardImpl<DeviceType::PrivateUse1> {
  Device exchangeDevice(Device) const override { return kHere; }
  Device getDevice() const override { return kHere; }
  Stream getStream(Device) const noexcept override { return only_stream(); }
  Stream getDefaultStream(Device) const override { return only_stream(); }
  Stream getNewStream(Device, int) const override { return only_stream(); }
  Stream getStreamFromGlobalPool(Device, bool) const override { return only_stream(); }
  Stream exchangeStream(Stream) const noexcept override { return only_stream(); }
  void record(void**, const Stream&, const DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

// Draws what a CPU's generator draws, which operations find in it.
struct HereGenerator final : GeneratorImpl {
  explicit HereGenerator(Generator generator)
      : GeneratorImpl(kHere, DispatchKeySet(DispatchKey::PrivateUse1)), cpu(std::move(generator)) {}
  void set_current_seed(uint64_t seed) override { cpu.set_current_seed(seed); }
  uint64_t current_seed() const override { return cpu.current_seed(); }
  uint64_t seed() override { return cpu.seed(); }
  void set_offset(uint64_t) override {}
  uint64_t get_offset() const override { return 0; }
  void set_state(const c10::TensorImpl& state) override {
    cpu.unsafeGetGeneratorImpl()->set_state(state);
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return cpu.unsafeGetGeneratorImpl()->get_state();
  }
  HereGenerator* clone_impl() const override { return new HereGenerator(cpu.clone()); }
  Generator cpu;
};

Generator new_generator() {
  return at::make_generator<HereGenerator>(at::detail::createCPUGenerator());
}
Generator& default_generator() {
  static Generator generator = new_generator();
  return generator;
}

DataPtr memory_of(const Storage& owner, Device device) {
  auto drop = [](void* context) { delete static_cast<Storage*>(context); };
  return DataPtr(const_cast<void*>(owner.data()), new Storage(owner), drop, device);
}

struct Hooks final : PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  Device getDeviceFromPtr(void*) const override { return kHere; }
  const Generator& getDefaultGenerator(DeviceIndex) const override { return default_generator(); }
  Generator getNewGenerator(DeviceIndex) const override { return new_generator(); }
  void resizePrivateUse1Bytes(const Storage& storage, size_t bytes) const override {
    DataPtr memory = allocator.allocate(bytes);
    if (storage.data()) memcpy(memory.get(), storage.data(), std::min(bytes, storage.nbytes()));
    storage.set_data_ptr_noswap(std::move(memory));
    storage.set_nbytes(bytes);
  }
};

Storage over(const Storage& owner, Device device) {
  auto* allocates = device == kHere ? &allocator : c10::GetAllocator(kCPU);
  return Storage(c10::make_intrusive<StorageImpl>(
      StorageImpl::use_byte_size_t(), owner.nbytes(), memory_of(owner, device), allocates, true));
}

void shape_like(const Tensor& tensor, const Tensor& like) {
  auto* impl = tensor.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  impl->_set_conj(like.is_conj());
  impl->_set_neg(like.is_neg());
}

// Tensors of one call, with those of the CPU over the same memory.
struct Call {
  std::vector<std::pair<Tensor, Tensor>> pairs;  // here, on the CPU
  std::map<StorageImpl*, Storage> on_cpu;
  std::map<StorageImpl*, Tensor> here;  // by the storage on the CPU

  Tensor to_cpu(const Tensor& tensor) {
    for (auto& [own, other] : pairs)
      if (own.is_same(tensor)) return other;
    auto* impl = tensor.storage().unsafeGetStorageImpl();
    if (!on_cpu.count(impl)) {
      on_cpu.emplace(impl, over(tensor.storage(), kCPU));
      here.emplace(on_cpu.at(impl).unsafeGetStorageImpl(), tensor);
    }
    auto other = at::detail::make_tensor<TensorImpl>(
        Storage(on_cpu.at(impl)), DispatchKeySet(DispatchKey::CPU), tensor.dtype());
    shape_like(other, tensor);
    if (tensor.unsafeGetTensorImpl()->is_wrapped_number())
      other.unsafeGetTensorImpl()->set_wrapped_number(true);
    pairs.emplace_back(tensor, other);
    return other;
  }

  // The argument itself, a view of one, or a new tensor.
  Tensor to_here(const Tensor& tensor, bool makes_here) {
    // Sparse tensors stay the CPU's.
    if (!tensor.defined() || tensor.device() != kCPU || tensor.layout() != kStrided) return tensor;
    for (auto& [own, other] : pairs)
      if (other.is_same(tensor)) return own;
    auto base = here.find(tensor.storage().unsafeGetStorageImpl());
    Tensor result;
    if (base != here.end()) {
      result = at::detail::make_tensor<TensorImpl>(
          c10::TensorImpl::VIEW, Storage(base->second.storage()), base->second.key_set(),
          tensor.dtype());
    } else if (makes_here) {
      result = at::detail::make_tensor<TensorImpl>(
          over(tensor.storage(), kHere), DispatchKeySet(DispatchKey::PrivateUse1), tensor.dtype());
    } else {
      return tensor;
    }
    shape_like(result, tensor);
    return result;
  }

  // What an operation resized or reshaped in place.
  void settle() {
    for (auto& [own, other] : pairs) {
      auto ours = own.storage(), theirs = other.storage();
      if (ours.data() != theirs.data() || ours.nbytes() != theirs.nbytes()) {
        ours.set_data_ptr_noswap(memory_of(theirs, kHere));
        ours.set_nbytes(theirs.nbytes());
      }
      if (own.sizes() != other.sizes() || own.strides() != other.strides()) shape_like(own, other);
    }
  }
};

// Calls `change` on every tensor of a value: one, a list, a list with gaps.
template <typename Change>
bool change_tensors(IValue& value, const Change& change) {
  if (value.isTensor()) {
    value = change(value.toTensor());
  } else if (value.isTensorList()) {
    c10::List<Tensor> list;
    for (const Tensor& tensor : value.toTensorVector()) list.push_back(change(tensor));
    value = list;
  } else if (value.isList() && *value.toList().elementType() == *c10::getTypePtr<std::optional<Tensor>>()) {
    c10::List<std::optional<Tensor>> list;
    for (const std::optional<Tensor>& tensor : value.toOptionalTensorList())
      list.push_back(tensor ? std::optional<Tensor>(change(*tensor)) : std::nullopt);
    value = list;
  } else {
    return false;
  }
  return true;
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  // A card's kernels take indices from the CPU as well, and copies are what crosses.
  static const std::set<std::string> indexing = {
      "aten::index", "aten::index.out", "aten::index_put_", "aten::_index_put_impl_"};
  const auto& schema = op.schema();
  const bool copies = schema.name() == "aten::_copy_from";
  Call call;
  bool any_here = false, makes_here = false, names_device = false;
  std::string others;
  const size_t first = stack->size() - schema.arguments().size();
  for (size_t i = 0; i < schema.arguments().size(); ++i) {
    auto& value = (*stack)[first + i];
    const auto& argument = schema.arguments()[i];
    const bool written = argument.alias_info() && argument.alias_info()->isWrite();
    const bool free = copies || (argument.name() == "indices" && indexing.count(schema.name()));
    auto take = [&](const Tensor& tensor) {
      if (!tensor.defined()) return tensor;
      if (tensor.device() == kHere) {
        any_here = true;
        return call.to_cpu(tensor);
      }
      if (!free && (tensor.dim() > 0 || written)) others += argument.name() + " ";
      return tensor;
    };
    if (change_tensors(value, take)) continue;
    if (value.isDevice()) {
      names_device = true;
      makes_here = value.toDevice().type() == DeviceType::PrivateUse1;
      if (makes_here) value = Device(kCPU);
    } else if (value.isGenerator()) {
      auto generator = value.toGenerator();
      TORCH_CHECK(generator.device() == kHere, schema.name(), ": a generator of ", generator.device(),
                  " for tensors on ", kHere);
      value = generator.get<HereGenerator>()->cpu;
    }
  }
  TORCH_CHECK(!any_here || others.empty(), "Expected all tensors to be on the same device: ",
              schema.name(), " got ", others, "on the CPU");
  if (copies) {
    auto to = (*stack)[first + 1].toTensor();
    to.copy_((*stack)[first].toTensor());
    torch::jit::drop(stack, schema.arguments().size());
    torch::jit::push(stack, to);
  } else {
    op.callBoxed(stack);
  }
  call.settle();
  for (size_t i = stack->size() - schema.returns().size(); i < stack->size(); ++i)
    change_tensors((*stack)[i], [&](const Tensor& tensor) {
      return call.to_here(tensor, names_device ? makes_here : any_here);
    });
}

Tensor& set_at(Tensor& self, Storage source, c10::SymInt offset, c10::SymIntArrayRef size,
               c10::SymIntArrayRef stride) {
  auto* impl = self.unsafeGetTensorImpl();
  auto sizes = C10_AS_INTARRAYREF_SLOW(size), strides = C10_AS_INTARRAYREF_SLOW(stride);
  impl->set_storage_keep_dtype(std::move(source));
  impl->set_sizes_contiguous(sizes);
  if (strides.size() == sizes.size()) impl->set_sizes_and_strides(sizes, strides);
  impl->set_storage_offset(offset.guard_int(__FILE__, __LINE__));
  return self;
}

Tensor& set_whole(Tensor& self, Storage source) {
  c10::SymInt count(static_cast<int64_t>(source.nbytes() / self.itemsize()));
  return set_at(self, std::move(source), 0, c10::SymIntArrayRef(&count, 1), {});
}

Tensor& set_to(Tensor& self, const Tensor& source) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(source.storage());
  shape_like(self, source);
  return self;
}

}  // namespace

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("set_.source_Storage", &set_whole);
  library.impl("set_.source_Storage_storage_offset", &set_at);
  library.impl("set_.source_Tensor", &set_to);
  // torch's own ways to these ask for a plug-in, or resize a result of the CPU's.
  for (auto name : {"convolution", "convolution_backward", "mse_loss"})
    library.impl(name, torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

// A copy resolves what is conjugated or negated itself; else resolving would copy without end.
TORCH_LIBRARY_IMPL(aten, Conjugate, library) {
  library.impl("_copy_from", torch::CppFunction::makeFallthrough());
}
TORCH_LIBRARY_IMPL(aten, Negative, library) {
  library.impl("_copy_from", torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  KERNEL_PRIVATEUSEONE(linear, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(matmul, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(mm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(bmm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(addmm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(baddbmm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(conv1d, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(conv2d, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(conv_transpose2d, input, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(scaled_dot_product_attention, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(cross_entropy_loss, fp32)
  KERNEL_PRIVATEUSEONE(mse_loss, fp32)
  KERNEL_PRIVATEUSEONE(layer_norm, fp32)
  KERNEL_PRIVATEUSEONE(group_norm, fp32)
  KERNEL_PRIVATEUSEONE(softmax, int, fp32)
  KERNEL_PRIVATEUSEONE(log_softmax, int, fp32)
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  static Hooks hooks;
  module.def("start", [] { RegisterPrivateUse1HooksInterface(&hooks); });
  module.def("default_generator", [] { return default_generator(); });
}
