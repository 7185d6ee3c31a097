"""LLaMA-Factory's keys that change nothing here (SKIPPED) or have no equal (NO_EQUAL), each group with its reason."""

from __future__ import annotations

from tunesmith.recipe.foreign import shared
from tunesmith.recipe.foreign.rules import NoEqual, Skip

OTHER_TRAINING = "import the file of a supervised fine-tuning"

SKIPPED = (
    *shared.TRAINER_SKIPPED,
    Skip("flash_attn use_unsloth use_unsloth_gc enable_liger_kernel use_liger_kernel liger_kernel_config use_v1_kernels "
         "use_cache activation_checkpointing activation_checkpointing_kwargs disable_gradient_checkpointing use_reentrant_gc "
         "upcast_layernorm upcast_lmhead_output use_kv_cache use_kt kt_weight_path kt_expert_checkpoint_path", shared.SPEED),
    Skip("average_tokens_across_devices log_on_each_node save_on_each_node ddp_static_graph ddp_backend parallelism_config "
         "use_cpu use_mca use_hyper_parallel hyper_parallel_args ray_init_kwargs ray_run_name ray_storage_path "
         "resources_per_worker placement_strategy master_addr master_port device_map no_cuda full_determinism",
         shared.ONE_DEVICE),
    Skip("tensor_model_parallel_size pipeline_model_parallel_size expert_model_parallel_size sequence_parallel "
         "bias_activation_fusion apply_rope_fusion use_distributed_optimizer overlap_param_gather overlap_grad_reduce "
         "moe_grouped_gemm moe_token_dispatcher_type recompute_granularity fsdp_transformer_layer_cls_to_wrap",
         shared.ONE_DEVICE),
    Skip("pure_bf16 bf16_full_eval fp16_full_eval compute_dtype infer_dtype", shared.PRECISION),
    Skip("streaming buffer_size overwrite_cache preprocessing_batch_size preprocessing_num_workers tokenized_path "
         "data_shared_file_system dataloader_persistent_workers dataloader_multiprocessing_context dataloader_in_order "
         "cache_dir media_dir label_names length_column_name", shared.LOADING),
    Skip("logging_strategy logging_first_step logging_nan_inf_filter logging_dir include_num_input_tokens_seen log_level "
         "log_level_replica disable_tqdm run_name debug skip_memory_metrics plot_loss include_effective_tokens_per_second "
         "print_param_status enable_torch_profiler profiler_output_dir profiler_wait_steps profiler_warmup_steps "
         "profiler_active_steps profiler_repeat profiler_record_shapes profiler_profile_memory profiler_with_stack "
         "profile_modules", shared.LOGGED),
    Skip("overwrite_output_dir", "every run has a directory of its own"),
    Skip("data_seed train_sampling_strategy sortish_sampler", shared.SHUFFLING),
    Skip("per_device_eval_batch_size eval_delay prediction_loss_only eval_on_start eval_do_concat_batches "
         "eval_use_gather_object eval_accumulation_steps include_for_metrics batch_eval_metrics compute_accuracy do_eval "
         "do_predict predict_with_generate generation_max_length generation_num_beams generation_config eval_num_beams "
         "eval_on_each_dataset", "the held-out loss is packed like training; answers are compared in the report (eval)"),
    Skip("do_sample temperature top_p top_k num_beams max_length repetition_penalty length_penalty skip_special_tokens",
         "of generation; the report compares greedy answers, and a request to the server says its own"),
    Skip("infer_backend offload_folder vllm_maxlen vllm_gpu_util vllm_enforce_eager vllm_max_lora_rank vllm_config "
         "sglang_maxlen sglang_mem_fraction sglang_tp_size sglang_config sglang_lora_backend",
         "of serving; `tunesmith serve` serves the base and any number of adapters"),
    Skip("export_dir export_size export_device export_quantization_bit export_quantization_dataset "
         "export_quantization_nsamples export_quantization_maxlen export_legacy_format export_hub_model_id",
         "of an export, which is not part of a training"),
    Skip("hf_hub_token ms_hub_token om_hub_token hub_token", "a secret, which does not belong into a recipe: `hf auth login`"),
    Skip("hub_private_repo hub_always_push", "nothing is pushed to a hub; a release is published by whoever serves it"),
    Skip("ignore_data_skip restore_callback_states_from_checkpoint enable_jit_checkpoint",
         "a resume is exact here, and checkpoints are whole or absent"),
    Skip("ignore_pad_token_for_loss", "there is no padding here, and nothing but answers is trained"),
    Skip("swanlab_project swanlab_workspace swanlab_run_name swanlab_mode swanlab_api_key swanlab_logdir "
         "swanlab_lark_webhook_url swanlab_lark_secret trackio_space_id trackio_bucket_id trackio_static_space_id",
         "of a tracker that is not here: MLflow (track.mlflow) has the metrics"),
    Skip("image_max_pixels image_min_pixels image_do_pan_and_scan crop_to_patches video_max_pixels video_min_pixels "
         "video_fps video_maxlen use_audio_in_video audio_sampling_rate freeze_vision_tower freeze_multi_modal_projector "
         "freeze_language_model", "text only here"),
    Skip("quantization_method quantization_type double_quantization quantization_device_map pissa_iter pissa_convert "
         "create_new_adapter adapter_folder galore_target galore_rank galore_update_interval galore_scale galore_proj_type "
         "galore_layerwise apollo_target apollo_rank apollo_update_interval apollo_scale apollo_proj apollo_proj_type "
         "apollo_scale_type apollo_layerwise apollo_scale_front badam_mode badam_start_block badam_switch_mode "
         "badam_switch_interval badam_update_ratio badam_mask_mode badam_verbose freeze_trainable_layers "
         "freeze_trainable_modules module_dropout oft_rank oft_block_size oft_target asft_alpha eaft_alpha "
         "kt_use_lora_experts kt_lora_expert_num kt_lora_expert_intermediate_size fp8_backend "
         "fp8_enable_fsdp_float8_all_gather init_special_tokens block_diag_attn model_max_length use_fast_tokenizer "
         "loraplus_lr_embedding",
         "a setting of something else that would have to be on, and is on this list by its own key; or derived"),
    Skip("pref_beta pref_ftx pref_bco_weight pref_loss dpo_label_smoothing kto_chosen_weight kto_rejected_weight simpo_gamma "
         "ppo_buffer_size ppo_epochs ppo_score_norm ppo_target ppo_whiten_rewards ref_model ref_model_adapters "
         "ref_model_quantization_bit reward_model reward_model_adapters reward_model_quantization_bit reward_model_type "
         "ld_alpha", "of preference training, which `stage: sft` is not; another stage is an error"),
)

NO_EQUAL = (
    *shared.TRAINER_NO_EQUAL,
    NoEqual("train_on_prompt", "questions and system prompts are trained too",
            "leave it off: the mask is made from the conversation's structure (`tunesmith data show` shows it)",
            consequence="the recipe trains the answers alone, so that losses are not comparable"),
    NoEqual("mask_history", "only the last answer of a conversation is trained",
            "give the other answers `weight`: 0 in the rows", consequence="the recipe trains every answer"),
    NoEqual("adapter_name_or_path", "training begins from an adapter",
            "merge that adapter into its base and name the result in base",
            consequence="the recipe begins from the base with a new adapter"),
    NoEqual("freeze_extra_modules", "more modules of the base are trained",
            "LoRA on all linear layers, or method: {type: full}, are the nearest"),
    NoEqual("use_llama_pro mixture_of_depths train_from_scratch", "the base gets other layers, or none of its weights",
            "name a base that is as you want it"),
    NoEqual("use_galore use_apollo use_badam use_adam_mini use_muon", "another optimizer",
            "the recipe trains a LoRA adapter with AdamW"),
    NoEqual("use_dft_loss use_asft_loss use_eaft_loss label_smoothing_factor", "another loss",
            "a recipe's loss is the mean over trained tokens"),
    NoEqual("moe_aux_loss_coef", "the routers of experts get a loss of their own", "take a dense base"),
    NoEqual("fp8", "training computes in 8 bits", "nothing: " + shared.PRECISION),
    NoEqual("shift_attn rope_scaling", "attention works otherwise than the base's configuration says",
            "change the base's config.json in a directory of your own, and name that in base",
            consequence="the base is used as it is"),
    NoEqual("resize_vocab add_tokens add_special_tokens new_special_tokens_config", "tokens are added to the tokenizer",
            "their embeddings would have to be trained whole; write them as ordinary text, which the tokenizer splits",
            consequence="the recipe uses the base's own tokenizer, which splits them"),
    NoEqual("split_special_tokens", "special tokens in the rows are read as text",
            "`tunesmith data show` tells how they are read", consequence="the tokenizer decides"),
    NoEqual("mix_strategy interleave_probs", "datasets are interleaved by probabilities",
            "data.mix.weights: shares of each source", off=(False, "concat"), consequence="the recipe takes all rows of each"),
    NoEqual("tool_format", "tools are written in another way", "the base's own template writes tools",
            consequence="the base's own template writes them"),
    NoEqual("default_system", "a system prompt is put before rows that have none", "write it into the rows",
            consequence="the rows are trained as they are"),
    NoEqual("enable_thinking preserve_thinking", "the template is asked to think, or not to",
            "write a Jinja file with it fixed, and name it in data.template", off=(),
            consequence="the base's own template decides"),
    NoEqual("early_stopping_steps", "training ends when the loss says so",
            "set train.eval_every_steps to see it, and train.max_steps to end there",
            consequence="the recipe trains all its epochs"),
    NoEqual("disable_shuffling", "rows are trained in their order", "nothing: " + shared.SHUFFLING,
            consequence=shared.SHUFFLING),
    NoEqual("use_swanlab", "metrics go to another tracker", "set track.mlflow to a tracking URI",
            consequence="metrics go to MLflow"),
    NoEqual("push_to_hub", "checkpoints are pushed to the hub",
            "push the adapter of a release: it is an ordinary PEFT directory", consequence="nothing is pushed"),
    NoEqual("evaluation_strategy", "an old name of eval_strategy", "write eval_strategy"),
)
