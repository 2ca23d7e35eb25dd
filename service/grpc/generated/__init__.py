"""Made by `make proto` from service/grpc/proto; do not edit."""
