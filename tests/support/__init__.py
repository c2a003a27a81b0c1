"""What tests share: builders of bundles, fakes, brokers, ports and devices."""
